//! Which pre-tokenizer a file describes, and the scanner for it. There is no pattern engine: a description is either
//! one of the known ones or an error.

use serde_json::Value;

use crate::cased::Cased;
use crate::classic::Classic;
use crate::error::{Error, Result, shorten_json};
use crate::modern::Modern;
use crate::staged::{Set, Staged};

/// The splits of DeepSeek V3 and its successors, as their files spell them.
const MODERN: [&str; 3] = [
    r"\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+\
     | ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/// The one split of Llama 3 and GLM.
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The one split of Qwen2.
const ONE_DIGIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The one split of Moonlight and Kimi, whose own files are of another kind, where it is written into a `tokenizer.json`.
const CASED: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Cuts a text into the pieces that merging never crosses.
#[derive(Debug)]
pub(crate) enum PreTokenizer {
    /// DeepSeek V3, R1, V3.1, V3.2, V4.
    Modern(Modern),
    /// Llama 3, GLM, Qwen2.
    Classic(Classic),
    /// Moonlight, Kimi.
    Cased(Cased),
    /// DeepSeek LLM, V2, V2-Lite and Coder.
    Staged(Box<Staged>),
}

impl PreTokenizer {
    /// Recognizes the `pre_tokenizer` of a tokenizer file.
    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        let unsupported = |found: &Value| Error::Unsupported {
            field: "pre_tokenizer".into(),
            found: shorten_json(found),
        };
        let steps = (kind(value) == "Sequence")
            .then(|| value.get("pretokenizers").and_then(Value::as_array))
            .flatten()
            .ok_or_else(|| unsupported(value))?;
        let (last, steps) = steps.split_last().ok_or_else(|| unsupported(value))?;
        let plain_bytes = kind(last) == "ByteLevel"
            && last.get("add_prefix_space") == Some(&Value::Bool(false))
            && last.get("use_regex") == Some(&Value::Bool(false));
        if !plain_bytes {
            return Err(unsupported(last));
        }
        let digits_last = steps.last().is_some_and(|step| {
            kind(step) == "Digits" && step.get("individual_digits") == Some(&Value::Bool(true))
        });
        let splits = if digits_last {
            &steps[..steps.len() - 1]
        } else {
            steps
        };
        let patterns: Vec<&str> = splits
            .iter()
            .map(|step| isolating_pattern(step).ok_or_else(|| unsupported(step)))
            .collect::<Result<_>>()?;
        if !digits_last && patterns == MODERN {
            return Ok(Self::Modern(Modern::new()));
        }
        if let (false, [pattern]) = (digits_last, &patterns[..]) {
            match *pattern {
                THREE_DIGITS => return Ok(Self::Classic(Classic::new(3))),
                ONE_DIGIT => return Ok(Self::Classic(Classic::new(1))),
                CASED => return Ok(Self::Cased(Cased::new())),
                _ => {}
            }
        }
        let staged = digits_last.then(|| staged_from(&patterns)).flatten();
        staged
            .map(|staged| Self::Staged(Box::new(staged)))
            .ok_or_else(|| unsupported(value))
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

/// The pattern of `{"type": "Split", "pattern": {"Regex": ...}, "behavior": "Isolated", "invert": false}`.
fn isolating_pattern(step: &Value) -> Option<&str> {
    let plain = kind(step) == "Split"
        && step.get("behavior").and_then(Value::as_str) == Some("Isolated")
        && matches!(step.get("invert"), None | Some(Value::Bool(false)));
    plain
        .then(|| step.get("pattern")?.get("Regex")?.as_str())
        .flatten()
}

fn staged_from(patterns: &[&str]) -> Option<Staged> {
    let (newlines, letters, punctuation, trailing_space, han) = match *patterns {
        [newlines, letters, punctuation, han] => (newlines, letters, punctuation, false, han),
        [newlines, letters, punctuation, r"\s+$", han] => {
            (newlines, letters, punctuation, true, han)
        }
        _ => return None,
    };
    if !matches!(newlines, "[\r\n]" | r"[\r\n]") {
        return None;
    }
    let run = |pattern: &str| match pattern.strip_prefix(r"\s?")?.strip_suffix('+')? {
        r"\p{L}" => Some(Set::Letters),
        r"\p{P}" => Some(Set::Punctuation),
        set => ranges(set),
    };
    let han = ranges(han.strip_suffix('+')?)?;
    Some(Staged::new(
        &run(letters)?,
        &run(punctuation)?,
        trailing_space,
        &han,
    ))
}

/// The code points of `[...]` made of single characters and ascending ranges. The sets are read from the file, and not
/// compared with a copy here, because copies in circulation differ where characters have canonical equivalents
/// (KELVIN SIGN and K), and the ids have to follow the file.
fn ranges(set: &str) -> Option<Set> {
    let inner = set.strip_prefix('[')?.strip_suffix(']')?;
    // A character that a pattern engine gives a meaning inside a set, but for the hyphen, is not read here.
    if inner.is_empty() || inner.contains(['[', ']', '\\', '^', '&']) {
        return None;
    }
    let mut ranges = Vec::new();
    let mut characters = inner.chars().peekable();
    while let Some(first) = characters.next() {
        let last = if characters.next_if_eq(&'-').is_some() {
            characters.next()?
        } else {
            first
        };
        if first == '-' || last == '-' || first > last {
            return None;
        }
        ranges.push((first as u32, last as u32));
    }
    Some(Set::Ranges(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    }

    fn sequence(steps: Vec<Value>) -> Value {
        let mut steps = steps;
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    #[test]
    fn the_known_families_are_recognized() {
        let modern = sequence(MODERN.iter().map(|pattern| split(pattern)).collect());
        assert!(matches!(
            PreTokenizer::from_json(&modern),
            Ok(PreTokenizer::Modern(_))
        ));
        let digits = json!({"type": "Digits", "individual_digits": true});
        let coder = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[a-z]+"]
            .map(split)
            .into_iter();
        let coder = sequence(coder.chain([digits]).collect());
        assert!(matches!(
            PreTokenizer::from_json(&coder),
            Ok(PreTokenizer::Staged(_))
        ));
    }

    #[test]
    fn anything_else_is_an_error_with_the_supported_list() {
        let mut inverted = split(MODERN[0]);
        inverted["invert"] = json!(true);
        for value in [
            json!(null),
            json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}),
            json!({"type": "Sequence", "pretokenizers": []}),
            sequence(vec![]),
            sequence(vec![split(r"\p{N}+"), split(MODERN[1]), split(MODERN[2])]),
            sequence(vec![inverted, split(MODERN[1]), split(MODERN[2])]),
        ] {
            let result = PreTokenizer::from_json(&value);
            let message = result
                .err()
                .map_or_else(String::new, |error| error.to_string());
            assert!(
                message.starts_with("unsupported tokenizer: pre_tokenizer is "),
                "{message}"
            );
            assert!(message.contains("V2-Lite"), "{message}");
        }
    }

    #[test]
    fn sets_are_read_as_ascending_ranges_only() {
        assert_eq!(
            ranges("[A-Zx]"),
            Some(Set::Ranges(vec![(0x41, 0x5a), (0x78, 0x78)]))
        );
        for bad in [
            "[]", "[z-a]", "[^a]", "[a-]", "[-a]", r"[\w]", "a", "[a[b]]",
        ] {
            assert_eq!(ranges(bad), None, "{bad}");
        }
    }
}
