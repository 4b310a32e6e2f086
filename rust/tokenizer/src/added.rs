//! Added tokens: found in the text before anything else, each a token of its own.

use crate::unicode::is_space;

/// Longest content of an added token: the search may read this far from each character.
pub(crate) const MAX_LENGTH: usize = 1024;

/// A token that is matched as a whole.
#[derive(Debug, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the four independent flags of the file format"
)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    /// Left out by `skip_special`.
    pub(crate) special: bool,
    /// Matched in the second pass, in what the first has left.
    pub(crate) normalized: bool,
    /// Takes the white space before it.
    pub(crate) strip_left: bool,
    /// Takes the white space after it.
    pub(crate) strip_right: bool,
}

impl AddedToken {
    /// True for a token that is text and no control token: one character, not marked special. The files of the
    /// DeepSeek LLM and V2 family add thirteen letters this way ("ö" among them).
    pub(crate) fn is_text(&self) -> bool {
        !self.special && self.content.chars().nth(1).is_none()
    }

    /// Whether it holds white space or takes that around it.
    pub(crate) fn touches_white_space(&self) -> bool {
        self.strip_left || self.strip_right || self.content.contains(is_space)
    }
}

/// A part of a text, as a search divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    /// Its id, and where its content stands.
    Token(u32, (usize, usize)),
}

#[derive(Debug, Default)]
struct Node {
    /// Ascending by byte.
    children: Vec<(u8, u32)>,
    /// Index of the token that ends here.
    token: Option<u32>,
}

/// The bytes that tokens start with.
#[derive(Debug)]
enum Starts {
    None,
    One(u8),
    Two(u8, u8),
    Three(u8, u8, u8),
    Many(Box<[bool; 256]>),
}

impl Starts {
    fn new(set: &[bool; 256]) -> Self {
        let bytes: Vec<u8> = (0..=255).filter(|&byte| set[byte as usize]).collect();
        match bytes[..] {
            [] => Self::None,
            [a] => Self::One(a),
            [a, b] => Self::Two(a, b),
            [a, b, c] => Self::Three(a, b, c),
            _ => Self::Many(Box::new(*set)),
        }
    }

    /// The place of the first of them.
    fn find(&self, text: &[u8]) -> Option<usize> {
        match self {
            Self::None => None,
            Self::One(a) => memchr::memchr(*a, text),
            Self::Two(a, b) => memchr::memchr2(*a, *b, text),
            Self::Three(a, b, c) => memchr::memchr3(*a, *b, *c, text),
            Self::Many(set) => text.iter().position(|&byte| set[byte as usize]),
        }
    }
}

/// Finds added tokens: the leftmost match, the longest of those.
#[derive(Debug)]
pub(crate) struct Matcher {
    tokens: Vec<AddedToken>,
    nodes: Vec<Node>,
    starts: Starts,
}

impl Matcher {
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Self {
        let mut nodes = vec![Node::default()];
        let mut starts = [false; 256];
        for (index, token) in tokens.iter().enumerate() {
            let mut node = 0;
            for (depth, &byte) in token.content.as_bytes().iter().enumerate() {
                starts[byte as usize] |= depth == 0;
                node = match nodes[node]
                    .children
                    .binary_search_by_key(&byte, |child| child.0)
                {
                    Ok(place) => nodes[node].children[place].1 as usize,
                    Err(place) => {
                        let created = nodes.len();
                        nodes[node].children.insert(place, (byte, created as u32));
                        nodes.push(Node::default());
                        created
                    }
                };
            }
            nodes[node].token = Some(index as u32);
        }
        Self {
            tokens,
            nodes,
            starts: Starts::new(&starts),
        }
    }

    /// The longest token that starts at `start`.
    fn match_at(&self, text: &[u8], start: usize) -> Option<&AddedToken> {
        let mut node = &self.nodes[0];
        let mut found = None;
        for byte in &text[start..] {
            let Ok(place) = node.children.binary_search_by_key(byte, |child| child.0) else {
                break;
            };
            node = &self.nodes[node.children[place].1 as usize];
            found = node.token.or(found);
        }
        found.map(|index| &self.tokens[index as usize])
    }

    /// Divides `text` and emits the parts in order; stops early when `emit` returns false.
    pub(crate) fn split<'a>(&self, text: &'a str, emit: &mut dyn FnMut(Part<'a>) -> bool) -> bool {
        if self.tokens.is_empty() {
            return emit(Part::Text(text));
        }
        let bytes = text.as_bytes();
        let mut done = 0;
        let mut at = 0;
        while let Some(skipped) = self.starts.find(&bytes[at..]) {
            at += skipped;
            let Some(token) = self.match_at(bytes, at) else {
                at += 1;
                continue;
            };
            let mut start = at;
            at += token.content.len();
            let place = (start, at);
            if start < done {
                // It lies in the white space that the token before it has taken.
                continue;
            }
            let mut stop = at;
            if token.strip_left {
                start = text[..start].trim_end_matches(is_space).len().max(done);
            }
            if token.strip_right {
                stop = text.len() - text[stop..].trim_start_matches(is_space).len();
            }
            if done < start && !emit(Part::Text(&text[done..start])) {
                return false;
            }
            if !emit(Part::Token(token.id, place)) {
                return false;
            }
            done = stop;
        }
        done >= text.len() || emit(Part::Text(&text[done..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken {
            id,
            content: content.into(),
            special: false,
            normalized: false,
            strip_left: false,
            strip_right: false,
        }
    }

    /// Texts, and tokens as their id and content.
    #[derive(Debug, PartialEq)]
    enum Found<'a> {
        Text(&'a str),
        Token(u32, &'a str),
    }
    use Found::{Text, Token};

    fn split<'a>(tokens: &[AddedToken], text: &'a str) -> Vec<Found<'a>> {
        let mut parts = Vec::new();
        Matcher::new(tokens.to_vec()).split(text, &mut |part| {
            parts.push(match part {
                Part::Text(text) => Text(text),
                Part::Token(id, (start, end)) => Token(id, &text[start..end]),
            });
            true
        });
        parts
    }

    #[test]
    fn the_leftmost_then_the_longest_token_wins() {
        let tokens = [token(1, "<a"), token(2, "<a>b"), token(3, "a>")];
        assert_eq!(split(&tokens, "x<a>b"), [Text("x"), Token(2, "<a>b")]);
        assert_eq!(split(&tokens, "<a>c"), [Token(1, "<a"), Text(">c")]);
        assert_eq!(split(&tokens, "<<a"), [Text("<"), Token(1, "<a")]);
    }

    #[test]
    fn stripping_takes_the_white_space_on_its_side_only() {
        let left = AddedToken {
            strip_left: true,
            ..token(1, "<l>")
        };
        let right = AddedToken {
            strip_right: true,
            ..token(2, "<r>")
        };
        let tokens = [left, right];
        assert_eq!(
            split(&tokens, "a \u{3000}<l> b <r>\n c"),
            [
                Text("a"),
                Token(1, "<l>"),
                Text(" b "),
                Token(2, "<r>"),
                Text("c")
            ]
        );
        assert_eq!(
            split(&tokens, "<r>  <l>"),
            [Token(2, "<r>"), Token(1, "<l>")]
        );
    }

    #[test]
    fn an_emitter_that_returns_false_ends_the_search() {
        let mut seen = 0;
        let ended = !Matcher::new(vec![token(1, "<a>")]).split("x<a>y<a>", &mut |_| {
            seen += 1;
            false
        });
        assert!(ended && seen == 1);
    }
}
