//! The page cache once more, with nothing remembered that can be looked for: what the real one is compared with.

use abyssal_kvcache::{Limits, Stats};

struct Node {
    page: usize,
    parent: Option<usize>,
    salt: Vec<u8>,
    tokens: Vec<u32>,
    alive: bool,
}

#[derive(Clone)]
pub struct Sequence {
    pub name: u64,
    salt: Vec<u8>,
    pub pages: Vec<usize>,
    pub reserved: u64,
    pub computed: u64,
    published: u64,
    /// The ids of the first tokens.
    known: Vec<u32>,
    /// The node of each published page, its own or that of another page with the same content.
    chain: Vec<usize>,
    may_publish: bool,
}

pub struct Cache {
    num_pages: usize,
    page_size: usize,
    free: Vec<usize>,
    reusable: Vec<usize>,
    nodes: Vec<Node>,
    pub open: Vec<Sequence>,
    hits: u64,
    misses: u64,
    evictions: u64,
}

impl Sequence {
    /// Tokens that are computed or whose ids are known.
    pub fn known_or_computed(&self) -> usize {
        self.known.len().max(self.computed as usize)
    }
}

impl Cache {
    pub fn new(num_pages: usize, page_size: usize) -> Self {
        Self {
            num_pages,
            page_size,
            free: (0..num_pages).rev().collect(),
            reusable: Vec::new(),
            nodes: Vec::new(),
            open: Vec::new(),
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    pub fn get(&self, name: u64) -> &Sequence {
        self.open.iter().find(|each| each.name == name).unwrap()
    }

    fn at(&self, name: u64) -> usize {
        self.open.iter().position(|each| each.name == name).unwrap()
    }

    fn holders(&self, page: usize) -> usize {
        self.open
            .iter()
            .filter(|each| each.pages.contains(&page))
            .count()
    }

    fn node_of(&self, page: usize) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.alive && node.page == page)
    }

    fn find(&self, parent: Option<usize>, salt: &[u8], tokens: &[u32]) -> Option<usize> {
        self.nodes.iter().position(|node| {
            node.alive && node.parent == parent && node.salt == salt && node.tokens == tokens
        })
    }

    pub fn open(&mut self, name: u64, ids: &[u32], salt: &[u8], limits: Limits) -> u64 {
        let limit = (ids.len() as u64).min(limits.max_cached) / self.page_size as u64;
        let mut chain: Vec<usize> = Vec::new();
        for tokens in ids.chunks(self.page_size).take(limit as usize) {
            match self.find(chain.last().copied(), salt, tokens) {
                Some(node) => chain.push(node),
                None => break,
            }
        }
        while !((chain.len() * self.page_size) as u64).is_multiple_of(limits.multiple_of) {
            chain.pop();
        }
        self.hits += chain.len() as u64;
        self.misses += limit - chain.len() as u64;
        let cached = (chain.len() * self.page_size) as u64;
        let pages: Vec<usize> = chain.iter().map(|&node| self.nodes[node].page).collect();
        self.reusable.retain(|page| !pages.contains(page));
        self.open.push(Sequence {
            name,
            salt: salt.to_vec(),
            pages,
            reserved: cached,
            computed: cached,
            published: cached,
            known: ids.to_vec(),
            chain,
            may_publish: true,
        });
        cached
    }

    fn allocate(&mut self) -> usize {
        if let Some(page) = self.free.pop() {
            return page;
        }
        let page = self.reusable.remove(0);
        let node = self.node_of(page).unwrap();
        self.nodes[node].alive = false;
        self.evictions += 1;
        page
    }

    /// Pages to copy; or what was asked and what is free, and nothing done.
    pub fn step(&mut self, picks: &[(u64, u64)]) -> Result<Vec<(usize, usize)>, (u64, u64)> {
        let mut asked = 0;
        let mut copying: Vec<(u64, usize)> = Vec::new();
        for &(name, count) in picks {
            let sequence = self.get(name);
            let pages = (sequence.reserved + count).div_ceil(self.page_size as u64);
            asked += pages - sequence.pages.len() as u64;
            if count > 0 && !sequence.reserved.is_multiple_of(self.page_size as u64) {
                let last = *sequence.pages.last().unwrap();
                let gone = copying.iter().filter(|&&(_, page)| page == last).count();
                if self.holders(last) - gone > 1 {
                    copying.push((name, last));
                    asked += 1;
                }
            }
        }
        let free = (self.free.len() + self.reusable.len()) as u64;
        if asked > free {
            return Err((asked, free));
        }
        let mut copies = Vec::new();
        for &(name, count) in picks {
            let at = self.at(name);
            if let Some(&(_, from)) = copying.iter().find(|&&(other, _)| other == name) {
                let to = self.allocate();
                *self.open[at].pages.last_mut().unwrap() = to;
                copies.push((from, to));
            }
            self.open[at].reserved += count;
            while ((self.open[at].pages.len() * self.page_size) as u64) < self.open[at].reserved {
                let page = self.allocate();
                self.open[at].pages.push(page);
            }
        }
        Ok(copies)
    }

    pub fn ids_missing(&self, name: u64, computed: u64) -> u64 {
        computed.saturating_sub(self.get(name).known.len() as u64)
    }

    pub fn commit(&mut self, name: u64, computed: u64, publish: bool, ids: &[u32]) {
        let at = self.at(name);
        let sequence = &mut self.open[at];
        sequence.known.extend_from_slice(ids);
        sequence.computed = computed;
        if publish {
            sequence.published = computed;
        }
        let ready = sequence.published.min(sequence.known.len() as u64) as usize / self.page_size;
        for place in sequence.chain.len()..ready {
            let sequence = &self.open[at];
            let parent = sequence.chain.last().copied();
            if !sequence.may_publish || parent.is_some_and(|parent| !self.nodes[parent].alive) {
                self.open[at].may_publish = false;
                return;
            }
            let tokens = &sequence.known[place * self.page_size..][..self.page_size];
            let page = sequence.pages[place];
            let node = self
                .find(parent, &sequence.salt, tokens)
                .or_else(|| self.node_of(page))
                .unwrap_or_else(|| {
                    self.nodes.push(Node {
                        page,
                        parent,
                        salt: sequence.salt.clone(),
                        tokens: tokens.to_vec(),
                        alive: true,
                    });
                    self.nodes.len() - 1
                });
            self.open[at].chain.push(node);
        }
    }

    pub fn fork(&mut self, name: u64, new: u64) {
        let copy = self.get(name).clone();
        self.open.push(Sequence { name: new, ..copy });
    }

    pub fn close(&mut self, name: u64) {
        let at = self.at(name);
        let sequence = self.open.remove(at);
        for &page in sequence.pages.iter().rev() {
            if self.holders(page) == 0 {
                if self.node_of(page).is_some() {
                    self.reusable.push(page);
                } else {
                    self.free.push(page);
                }
            }
        }
        let own = sequence.pages.iter().rev();
        let ends = own.filter_map(|&page| self.node_of(page));
        let ends: Vec<usize> = sequence
            .chain
            .last()
            .copied()
            .into_iter()
            .chain(ends)
            .collect();
        for end in ends {
            self.settle(end);
        }
    }

    /// From a node to the first of its chain: the latest released, or unreachable.
    fn settle(&mut self, end: usize) {
        let mut path = Vec::new();
        let mut next = Some(end);
        while let Some(node) = next.filter(|&node| self.nodes[node].alive) {
            path.push(node);
            next = self.nodes[node].parent;
        }
        let whole = next.is_none();
        for node in path {
            let page = self.nodes[node].page;
            if self.holders(page) == 0 {
                self.reusable.retain(|&other| other != page);
                if whole {
                    self.reusable.push(page);
                } else {
                    self.nodes[node].alive = false;
                    self.free.push(page);
                }
            }
        }
    }

    pub fn clear(&mut self) {
        self.free.append(&mut self.reusable);
        for node in &mut self.nodes {
            node.alive = false;
        }
        for sequence in &mut self.open {
            sequence.may_publish = false;
            sequence.chain.clear();
        }
    }

    pub fn stats(&self) -> Stats {
        let holders: Vec<usize> = (0..self.num_pages).map(|page| self.holders(page)).collect();
        let free_pages = holders.iter().filter(|&&count| count == 0).count();
        assert_eq!(free_pages, self.free.len() + self.reusable.len());
        Stats {
            num_pages: self.num_pages,
            page_size: self.page_size as u64,
            free_pages,
            used_pages: self.num_pages - free_pages,
            shared_pages: holders.iter().filter(|&&count| count > 1).count(),
            published_pages: self.nodes.iter().filter(|node| node.alive).count(),
            reusable_pages: self.reusable.len(),
            sequences: self.open.len(),
            reserved_tokens: self.open.iter().map(|each| each.reserved).sum(),
            computed_tokens: self.open.iter().map(|each| each.computed).sum(),
            hits: self.hits,
            misses: self.misses,
            cached_tokens: self.hits * self.page_size as u64,
            evictions: self.evictions,
        }
    }
}
