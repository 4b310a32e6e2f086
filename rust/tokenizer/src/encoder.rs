//! One call's work: pieces to tokens, through the cache or by merging, into whatever the caller wants of them.

use crate::blocks;
use crate::bpe;
use crate::cache::{Cache, Few, INLINE, Key, LONG, SHORT, View};
use crate::error::{Error, Result};
use crate::merges::NONE;
use crate::modern::Modern;
use crate::pretokenize::PreTokenizer;
use crate::simd::{self, BLOCK, Window};
use crate::staged::Staged;
use crate::tokenizer::{Stop, Tokenizer};
use crate::whole::Whole;

/// Longest piece that is merged: its places are counted in 32 bits.
const MAX_MERGED: usize = (NONE - 1) as usize;
/// How many bytes pass between two looks at the caller's wish to stop.
const POLL_INTERVAL: usize = 1 << 16;

/// Takes the tokens in order.
pub(crate) trait Sink {
    fn few(&mut self, tokens: Few, count: usize);
    /// Any number of tokens.
    fn many(&mut self, tokens: &[u32]);
}

/// Appends ids to a list.
///
/// The list is longer than what is written; `finish` cuts it.
#[derive(Debug)]
pub(crate) struct Ids<'a> {
    list: &'a mut Vec<u32>,
    length: usize,
}

impl<'a> Ids<'a> {
    /// `bytes` is the length of the text, for a first guess.
    pub(crate) fn new(list: &'a mut Vec<u32>, bytes: usize) -> Self {
        let length = list.len();
        let wanted = length + bytes / 3 + 4;
        if list.capacity() == 0 {
            // Zeroed memory from the system is not written twice.
            *list = vec![0; wanted];
        } else {
            list.resize(wanted, 0);
        }
        Self { list, length }
    }

    pub(crate) fn finish(self) {
        self.list.truncate(self.length);
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize) {
        let wanted = (self.length + more + 4).max(self.list.len() + self.list.len() / 2);
        self.list.resize(wanted, 0);
    }
}

impl Sink for Ids<'_> {
    #[inline(always)]
    fn few(&mut self, [first, second]: Few, count: usize) {
        let tokens = [
            first as u32,
            (first >> 32) as u32,
            second as u32,
            (second >> 32) as u32,
        ];
        loop {
            let rest = self.list.get_mut(self.length..);
            if let Some(place) = rest.and_then(|rest| rest.first_chunk_mut::<4>()) {
                *place = tokens;
                self.length += count;
                return;
            }
            self.grow(4);
        }
    }

    #[inline]
    fn many(&mut self, tokens: &[u32]) {
        let end = self.length + tokens.len();
        if end > self.list.len() {
            self.grow(tokens.len());
        }
        self.list[self.length..end].copy_from_slice(tokens);
        self.length = end;
    }
}

/// Counts tokens and keeps none.
#[derive(Debug, Default)]
pub(crate) struct Count(pub(crate) usize);

impl Sink for Count {
    #[inline(always)]
    fn few(&mut self, _: Few, count: usize) {
        self.0 += count;
    }

    #[inline]
    fn many(&mut self, tokens: &[u32]) {
        self.0 += tokens.len();
    }
}

/// How many pieces are looked up together, so that the memory of each has time to come.
const BATCH: usize = 32;

/// A piece that waits to be looked up.
#[derive(Debug, Clone, Copy, Default)]
struct Waiting {
    start: usize,
    end: usize,
    /// Of pieces up to 15 bytes.
    key: Key,
    hash: u64,
}

impl Waiting {
    /// The piece `text[place.0..place.1]`, which `window` begins with. The memory that looking it up will read is asked
    /// for; that of `whole` too where it is given.
    #[inline(always)]
    fn new(
        cache: View<'_>,
        whole: Option<&Whole>,
        text: &[u8],
        (start, end): (usize, usize),
        window: &Window,
    ) -> Self {
        let length = end - start;
        let (key, hash);
        if length <= SHORT {
            key = Key::new(window, length);
            hash = key.hash();
            cache.prefetch_short(hash);
            if let Some(whole) = whole {
                whole.prefetch(hash);
            }
        } else {
            key = Key::default();
            hash = if length <= LONG {
                Cache::hash_of(&text[start..end])
            } else {
                0
            };
            cache.prefetch_long(hash);
        }
        Self {
            start,
            end,
            key,
            hash,
        }
    }
}

/// Appends the tokens of the pieces that stand where their hashes say; returns how many there are before the first that
/// does not.
#[inline(always)]
fn known(cache: View<'_>, waiting: &[Waiting], sink: &mut impl Sink) -> usize {
    for (place, piece) in waiting.iter().enumerate() {
        // The memory of longer pieces is elsewhere.
        if piece.end - piece.start > SHORT {
            return place;
        }
        match cache.short(piece.key, piece.hash) {
            Some((tokens, count)) if count > 0 => sink.few(tokens, count),
            _ => return place,
        }
    }
    waiting.len()
}

/// One call's state. After an error every method returns false and does nothing.
pub(crate) struct Encoder<'a, S> {
    tokenizer: &'a Tokenizer,
    cache: &'a mut Cache,
    stop: Stop<'a>,
    sink: &'a mut S,
    /// Pieces of a line.
    pieces: Vec<(usize, usize)>,
    /// The pieces before held a new one, so the next may.
    expects_news: bool,
    symbols: Vec<u32>,
    unpolled: usize,
    result: Result<()>,
}

impl<'a, S: Sink> Encoder<'a, S> {
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        cache: &'a mut Cache,
        stop: Stop<'a>,
        sink: &'a mut S,
    ) -> Self {
        Self {
            tokenizer,
            cache,
            stop,
            sink,
            pieces: Vec::new(),
            expects_news: true,
            symbols: Vec::new(),
            unpolled: 0,
            result: Ok(()),
        }
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.result
    }

    pub(crate) fn token(&mut self, id: u32) -> bool {
        self.sink.many(&[id]);
        self.poll(1)
    }

    /// A text in which no added token is looked for.
    pub(crate) fn text(&mut self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() && self.result.is_ok() {
            let start = at;
            let end = bytes.len().min(at + POLL_INTERVAL);
            let tokenizer = self.tokenizer;
            at = match &tokenizer.splitter {
                PreTokenizer::Modern(it) => self.blocks(it, bytes, at, end),
                PreTokenizer::Classic(it) => {
                    self.stretch(bytes, at, end, |a, b, c| it.next(a, b, c))
                }
                PreTokenizer::Cased(it) => self.stretch(bytes, at, end, |a, b, c| it.next(a, b, c)),
                PreTokenizer::Staged(staged) => self.lines(staged, bytes, at, end),
            };
            self.poll(at - start);
        }
        self.result.is_ok()
    }

    /// As `stretch`, with blocks of ASCII text all at once.
    fn blocks(&mut self, modern: &Modern, text: &[u8], mut at: usize, end: usize) -> usize {
        let mut waiting = [Waiting::default(); BATCH + BLOCK];
        while at < end {
            let mut count = 0;
            let cache = self.cache.view();
            let whole = self.expects_news.then_some(&self.tokenizer.whole);
            while count < BATCH && at < end {
                let padded;
                let window = if let Some(view) = text[at..].first_chunk::<{ BLOCK + 16 }>() {
                    let (half, _) = view
                        .split_first_chunk()
                        .unwrap_or((&[0x80; BLOCK / 2], &[]));
                    if simd::is_ascii(half) {
                        let (block, _) = view.split_first_chunk().unwrap_or((&[0; BLOCK], &[]));
                        let starts = blocks::starts(&simd::classify(block));
                        let mut rest = starts & starts.wrapping_sub(1);
                        if rest != 0 {
                            let base = at;
                            while rest != 0 {
                                let place = at - base;
                                let next = rest.trailing_zeros() as usize;
                                let (_, tail) = view.split_at(place);
                                let window = tail.first_chunk().unwrap_or(&[0; 16]);
                                waiting[count] =
                                    Waiting::new(cache, whole, text, (at, base + next), window);
                                count += 1;
                                at = base + next;
                                rest &= rest - 1;
                            }
                            continue;
                        }
                    }
                    let (window, _) = view.split_first_chunk().unwrap_or((&[0; 16], &[]));
                    window
                } else {
                    padded = simd::last_window(text, at);
                    &padded
                };
                let piece_end = modern.next(text, at, window);
                waiting[count] = Waiting::new(cache, whole, text, (at, piece_end), window);
                count += 1;
                at = piece_end;
            }
            self.look_up(text, &waiting[..count]);
        }
        at
    }

    /// The pieces that start in `text[at..end]`; returns where the last one ends.
    #[inline(always)]
    fn stretch(
        &mut self,
        text: &[u8],
        mut at: usize,
        end: usize,
        next: impl Fn(&[u8], usize, &Window) -> usize,
    ) -> usize {
        let mut waiting = [Waiting::default(); BATCH];
        while at < end {
            let mut count = 0;
            let cache = self.cache.view();
            let whole = self.expects_news.then_some(&self.tokenizer.whole);
            while count < BATCH && at < end {
                let padded;
                let window = if let Some(window) = text[at..].first_chunk() {
                    window
                } else {
                    padded = simd::last_window(text, at);
                    &padded
                };
                let piece_end = next(text, at, window);
                waiting[count] = Waiting::new(cache, whole, text, (at, piece_end), window);
                count += 1;
                at = piece_end;
            }
            self.look_up(text, &waiting[..count]);
        }
        at
    }

    /// The pieces of the lines that start in `text[at..end]`; returns where the last one ends.
    fn lines(&mut self, staged: &Staged, text: &[u8], mut at: usize, end: usize) -> usize {
        let mut pieces = std::mem::take(&mut self.pieces);
        while at < end {
            pieces.clear();
            at = staged.next_line(text, at, &mut |from, to| pieces.push((from, to)));
            let mut waiting = [Waiting::default(); BATCH];
            for batch in pieces.chunks(BATCH) {
                let cache = self.cache.view();
                let whole = self.expects_news.then_some(&self.tokenizer.whole);
                for (slot, &(from, to)) in waiting.iter_mut().zip(batch) {
                    let window = simd::last_window(text, from);
                    *slot = Waiting::new(cache, whole, text, (from, to), &window);
                }
                self.look_up(text, &waiting[..batch.len()]);
            }
        }
        self.pieces = pieces;
        at
    }

    /// A byte outside UTF-8.
    pub(crate) fn byte(&mut self, byte: u8) -> bool {
        if let Some(id) = self.tokenizer.byte_token(byte) {
            return self.token(id);
        }
        self.result = Err(Error::MissingByte { byte });
        false
    }

    /// Finds the tokens of all pieces that wait.
    #[inline(never)]
    fn look_up(&mut self, text: &[u8], mut waiting: &[Waiting]) {
        self.expects_news = false;
        loop {
            let found = known(self.cache.view(), waiting, self.sink);
            let Some((first, rest)) = waiting[found..].split_first() else {
                return;
            };
            self.rare(&text[first.start..first.end], first);
            waiting = rest;
        }
    }

    /// A piece that `known` does not find.
    #[inline(never)]
    fn rare(&mut self, piece: &[u8], &Waiting { key, hash, .. }: &Waiting) {
        if piece.len() > SHORT {
            return self.long_piece(piece, hash);
        }
        match self.cache.short(key, hash) {
            Some((_, 0)) => self.long_piece(piece, Cache::hash_of(piece)),
            Some((tokens, count)) => self.sink.few(tokens, count),
            None => {
                self.expects_news = true;
                self.new_piece(piece, key);
            }
        }
    }

    /// A short piece that was not met yet, or is forgotten.
    #[inline(never)]
    fn new_piece(&mut self, piece: &[u8], key: Key) {
        if let Some(token) = self.tokenizer.whole.get(key) {
            self.cache.learn_short(key, &[token]);
            self.sink.few([u64::from(token), 0], 1);
        } else if self.merge(piece) {
            if self.symbols.len() <= INLINE {
                self.cache.learn_short(key, &self.symbols);
            } else {
                self.cache.learn_short(key, &[]);
                self.cache
                    .learn_long(Cache::hash_of(piece), piece, &self.symbols);
            }
            self.sink.many(&self.symbols);
        }
    }

    #[inline(never)]
    fn long_piece(&mut self, piece: &[u8], hash: u64) {
        if piece.len() > LONG {
            if self.merge(piece) {
                self.sink.many(&self.symbols);
            }
            return;
        }
        if let Some(tokens) = self.cache.long(hash, piece) {
            return self.sink.many(tokens);
        }
        if self.merge(piece) {
            self.cache.learn_long(hash, piece, &self.symbols);
            self.sink.many(&self.symbols);
        }
    }

    /// Leaves the tokens of a piece in `symbols`.
    fn merge(&mut self, piece: &[u8]) -> bool {
        if self.result.is_err() {
            return false;
        }
        let (length, limit) = (piece.len(), MAX_MERGED);
        let tokenizer = self.tokenizer;
        if let Some(token) = tokenizer.long_whole(piece) {
            self.symbols.clear();
            self.symbols.push(token);
            return true;
        }
        if length > limit {
            self.result = Err(Error::PieceTooLong { length, limit });
        } else if let Err(byte) = tokenizer.symbols.start(piece, &mut self.symbols) {
            self.result = Err(Error::MissingByte { byte });
        } else if !self.apply(piece) {
            self.result = Err(Error::Interrupted);
        }
        self.result.is_ok()
    }

    /// Merges `symbols`, those of `piece`.
    fn apply(&mut self, piece: &[u8]) -> bool {
        let tokenizer = self.tokenizer;
        let (merges, symbols) = (&tokenizer.merges, &mut self.symbols);
        // An ASCII piece has a symbol for each character, and ranks of its own near at hand.
        if piece.is_ascii() {
            let rank = |at: usize| tokenizer.symbols.ascii_rank(piece, at);
            bpe::apply(merges, symbols, tokenizer.longest, Some(rank), self.stop)
        } else {
            let rank = bpe::NOT_AT_HAND;
            bpe::apply(merges, symbols, tokenizer.longest, rank, self.stop)
        }
    }

    fn poll(&mut self, bytes: usize) -> bool {
        self.unpolled += bytes;
        if self.unpolled >= POLL_INTERVAL && self.result.is_ok() {
            self.unpolled = 0;
            if (self.stop)() {
                self.result = Err(Error::Interrupted);
            }
        }
        self.result.is_ok()
    }
}
