//! Sixteen bytes at once: for each, whether it is of a kind.
//!
//! The portable form is the specification; the other (SSE2, which every x86-64 processor has) gives the same bits.

/// Sixteen bytes of text.
pub(crate) type Window = [u8; 16];

/// The last bytes of `text`, from `at` on, with zeros behind.
#[cold]
#[inline(never)]
pub(crate) fn last_window(text: &[u8], at: usize) -> Window {
    let mut window = [0; 16];
    let rest = text.get(at..).unwrap_or_default();
    let count = rest.len().min(16);
    window[..count].copy_from_slice(&rest[..count]);
    window
}

/// Asks for the memory of `place`, which will be read soon. It changes nothing but time.
#[inline(always)]
pub(crate) fn prefetch<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse"))]
    // SAFETY: the target has SSE; prefetching reads nothing, and the pointer is a reference's.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse")))]
    let _ = place;
}

/// Tells the system that `memory` will be used all over, and are best kept in large pages; elsewhere than on Linux, and
/// where the system has none to give, it changes nothing.
pub(crate) fn advise_large_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let bytes = std::mem::size_of_val(memory);
        let start = memory.as_mut_ptr() as usize;
        let first = start.next_multiple_of(PAGE);
        let end = (start + bytes) / PAGE * PAGE;
        if first < end {
            // SAFETY: the range lies within `memory`; the advice changes how memory is mapped, never what it holds.
            unsafe {
                libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// One bit for each byte of a window, the first lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kinds {
    /// `[A-Za-z]`
    pub(crate) letters: u32,
    /// Not ASCII.
    pub(crate) wide: u32,
}

/// Letters and bytes outside ASCII.
#[inline(always)]
pub(crate) fn letters(window: &Window) -> Kinds {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::letters(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::letters(window);
}

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// One bit for each byte of a block, the first lowest; none for what is not ASCII or a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Masks {
    pub(crate) letters: u64,
    pub(crate) digits: u64,
    /// `[\r\n]`
    pub(crate) newlines: u64,
    pub(crate) spaces: u64,
    /// Spaces, tabs, vertical tabs and form feeds.
    pub(crate) blanks: u64,
    /// Punctuation and symbols.
    pub(crate) marks: u64,
}

/// The kinds of all bytes of a block.
#[inline(always)]
pub(crate) fn classify(block: &[u8; BLOCK]) -> Masks {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::classify(block) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::classify(block);
}

/// True when the 32 bytes are ASCII.
#[inline(always)]
pub(crate) fn is_ascii(block: &[u8; BLOCK / 2]) -> bool {
    let (words, _) = block.as_chunks::<8>();
    let all = words
        .iter()
        .fold(0, |all, word| all | u64::from_ne_bytes(*word));
    all & 0x8080_8080_8080_8080 == 0
}

/// `[A-Z]`
#[inline(always)]
pub(crate) fn upper(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::upper(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::upper(window);
}

/// The bytes from 0x21 to 0x7E: letters, digits and punctuation.
#[inline(always)]
pub(crate) fn visible(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::visible(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::visible(window);
}

/// `[0-9]`
#[inline(always)]
pub(crate) fn digits(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::digits(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::digits(window);
}

/// ASCII white space: tab to carriage return, and space.
#[inline(always)]
pub(crate) fn white(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::white(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::white(window);
}

/// `[\r\n]`
#[inline(always)]
pub(crate) fn newlines(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::newlines(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::newlines(window);
}

/// Where a Han character from U+4E00 to U+9F7F begins whose bytes the window holds, and some of U+5000 to U+8FFF that
/// it holds in part.
#[inline(always)]
pub(crate) fn han(window: &Window) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    // SAFETY: the target has SSE2, says the line above.
    return unsafe { sse2::han(window) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    return portable::han(window);
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod sse2 {
    use super::{BLOCK, Kinds, Masks, Window};
    use std::arch::x86_64::{
        __m128i, _mm_add_epi8, _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_loadu_si128, _mm_movemask_epi8,
        _mm_or_si128, _mm_set1_epi8,
    };

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(window: &Window) -> __m128i {
        // SAFETY: a window is 16 bytes long, and this load takes any address.
        unsafe { _mm_loadu_si128(window.as_ptr().cast()) }
    }

    /// The bytes from `first` on, `count` of them.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn range(bytes: __m128i, first: u8, count: u8) -> __m128i {
        // SSE2 compares signed bytes only: the range is moved to where the signed numbers begin.
        let moved = _mm_add_epi8(bytes, _mm_set1_epi8(0x80_u8.wrapping_sub(first) as i8));
        _mm_cmplt_epi8(moved, _mm_set1_epi8(0x80_u8.wrapping_add(count) as i8))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn mask(bytes: __m128i) -> u32 {
        _mm_movemask_epi8(bytes) as u32
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn classify(block: &[u8; BLOCK]) -> Masks {
        let (windows, _) = block.as_chunks::<16>();
        let mut masks = Masks::default();
        let mut visible = 0;
        for (place, window) in windows.iter().enumerate() {
            let bytes = load(window);
            let set = |of: __m128i, all: &mut u64| {
                *all |= u64::from(mask(of)) << (16 * place);
            };
            let is = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
            let lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
            set(range(lower, b'a', 26), &mut masks.letters);
            set(range(bytes, b'0', 10), &mut masks.digits);
            set(range(bytes, 0x21, 0x5e), &mut visible);
            set(is(b' '), &mut masks.spaces);
            set(range(bytes, b'\t', 5), &mut masks.blanks);
            set(_mm_or_si128(is(b'\n'), is(b'\r')), &mut masks.newlines);
        }
        masks.marks = visible & !(masks.letters | masks.digits);
        masks.blanks = masks.blanks & !masks.newlines | masks.spaces;
        masks
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn letters(window: &Window) -> Kinds {
        let bytes = load(window);
        let lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        Kinds {
            letters: mask(range(lower, b'a', 26)),
            wide: mask(bytes),
        }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn upper(window: &Window) -> u32 {
        mask(range(load(window), b'A', 26))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn visible(window: &Window) -> u32 {
        mask(range(load(window), 0x21, 0x5e))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn digits(window: &Window) -> u32 {
        mask(range(load(window), b'0', 10))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn white(window: &Window) -> u32 {
        let bytes = load(window);
        let space = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b' ' as i8));
        mask(_mm_or_si128(space, range(bytes, b'\t', 5)))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn newlines(window: &Window) -> u32 {
        let bytes = load(window);
        let feed = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\n' as i8));
        let carriage = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\r' as i8));
        mask(_mm_or_si128(feed, carriage))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn han(window: &Window) -> u32 {
        let bytes = load(window);
        let is = |byte: u8| mask(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8)));
        let from_4e00 = is(0xe4) & mask(range(bytes, 0xb8, 8)) >> 1;
        let to_9f7f = is(0xe9) & mask(range(bytes, 0x80, 0x3e)) >> 1;
        mask(range(bytes, 0xe5, 4)) | from_4e00 | to_9f7f
    }
}

#[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "sse2"))))]
mod portable {
    use super::{BLOCK, Kinds, Masks, Window};

    #[inline(always)]
    fn mask(window: &Window, is: impl Fn(u8) -> bool) -> u32 {
        window.iter().enumerate().fold(0, |bits, (place, &byte)| {
            bits | u32::from(is(byte)) << place
        })
    }

    pub(super) fn classify(block: &[u8; BLOCK]) -> Masks {
        let all = |is: &dyn Fn(u8) -> bool| {
            let bit = |(place, &byte): (usize, &u8)| u64::from(is(byte)) << place;
            block.iter().enumerate().map(bit).sum()
        };
        Masks {
            letters: all(&|byte| byte.is_ascii_alphabetic()),
            digits: all(&|byte| byte.is_ascii_digit()),
            newlines: all(&|byte| matches!(byte, b'\r' | b'\n')),
            spaces: all(&|byte| byte == b' '),
            blanks: all(&|byte| matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)),
            marks: all(&|byte| byte.is_ascii_punctuation()),
        }
    }

    pub(super) fn letters(window: &Window) -> Kinds {
        Kinds {
            letters: mask(window, |byte| byte.is_ascii_alphabetic()),
            wide: mask(window, |byte| !byte.is_ascii()),
        }
    }

    pub(super) fn upper(window: &Window) -> u32 {
        mask(window, |byte| byte.is_ascii_uppercase())
    }

    pub(super) fn visible(window: &Window) -> u32 {
        mask(window, |byte| byte.is_ascii_graphic())
    }

    pub(super) fn digits(window: &Window) -> u32 {
        mask(window, |byte| byte.is_ascii_digit())
    }

    pub(super) fn white(window: &Window) -> u32 {
        mask(window, |byte| matches!(byte, b'\t'..=b'\r' | b' '))
    }

    pub(super) fn newlines(window: &Window) -> u32 {
        mask(window, |byte| matches!(byte, b'\r' | b'\n'))
    }

    pub(super) fn han(window: &Window) -> u32 {
        let second = mask(window, |byte| matches!(byte, 0xb8..=0xbf)) >> 1;
        let from_4e00 = mask(window, |byte| byte == 0xe4) & second;
        let second = mask(window, |byte| matches!(byte, 0x80..=0xbd)) >> 1;
        let to_9f7f = mask(window, |byte| byte == 0xe9) & second;
        mask(window, |byte| matches!(byte, 0xe5..=0xe8)) | from_4e00 | to_9f7f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_in_every_place_is_told_alike() {
        for place in 0..16 {
            for byte in 0..=255_u8 {
                for fill in [0, b'a', b' ', 0xff, 0xb8, 0xbe] {
                    let mut window = [fill; 16];
                    window[place] = byte;
                    assert_eq!(letters(&window), portable::letters(&window));
                    let mut block = [fill; BLOCK];
                    block[4 * place] = byte;
                    assert_eq!(classify(&block), portable::classify(&block));
                    assert_eq!(upper(&window), portable::upper(&window));
                    assert_eq!(visible(&window), portable::visible(&window));
                    assert_eq!(digits(&window), portable::digits(&window));
                    assert_eq!(white(&window), portable::white(&window));
                    assert_eq!(newlines(&window), portable::newlines(&window));
                    assert_eq!(han(&window), portable::han(&window));
                }
            }
        }
    }
}
