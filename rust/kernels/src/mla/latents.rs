//! Cached rows, gathered from their pages into a tile of float32 numbers.

use abyssal_quant::Bf16;

use super::arithmetic::Arithmetic;
#[cfg(target_arch = "x86_64")]
use crate::lanes::prefetch;

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// The rows of a layer's cache, `[slots, kv_lora + rope]`: a latent and a rotated key each.
#[derive(Debug, Clone, Copy)]
pub enum Latents<'a> {
    /// bfloat16.
    Bf16(&'a [Bf16]),
    /// float32.
    F32(&'a [f32]),
}

impl Latents<'_> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }
}

/// How a row is laid out in the cache and in a tile: both parts filled up with zeros to whole registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) latent: usize,
    pub(super) rope: usize,
    /// The latent in a tile.
    pub(super) latent_room: usize,
    /// A row in a tile.
    pub(super) row_room: usize,
}

impl Widths {
    pub(super) fn new(latent: usize, rope: usize, register: usize) -> Self {
        let latent_room = latent.next_multiple_of(register);
        Self {
            latent,
            rope,
            latent_room,
            row_room: latent_room + rope.next_multiple_of(register),
        }
    }
}

/// The cached rows of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) latents: Latents<'a>,
    pub(super) widths: Widths,
    pub(super) page_size: usize,
    /// Page ids in order of position; all lie in the cache.
    pub(super) table: &'a [i32],
}

impl Context<'_> {
    /// Where the row of a position begins in the cache.
    #[inline(always)]
    fn start(&self, position: usize) -> usize {
        let page = self.table[position / self.page_size] as usize;
        let row = page * self.page_size + position % self.page_size;
        row * (self.widths.latent + self.widths.rope)
    }

    /// Writes the rows of the positions `[first, first + count)`, `row_room` numbers each.
    ///
    /// # Safety
    /// The tier's instructions are there, the table holds the positions, and the tile has room.
    #[inline(always)]
    pub(super) unsafe fn read<L: Arithmetic>(&self, first: usize, count: usize, tile: *mut f32) {
        let Widths {
            latent,
            rope,
            latent_room,
            row_room,
        } = self.widths;
        for place in 0..count {
            let start = self.start(first + place);
            // SAFETY: as the caller promises; the row lies in the cache, because its page does.
            unsafe {
                let to = tile.add(place * row_room);
                match self.latents {
                    Latents::Bf16(values) => {
                        let from = values.as_ptr().add(start).cast::<u16>();
                        widen::<L>(from, latent, to);
                        widen::<L>(from.add(latent), rope, to.add(latent_room));
                    }
                    Latents::F32(values) => {
                        let from = values.as_ptr().add(start);
                        copy::<L>(from, latent, to);
                        copy::<L>(from.add(latent), rope, to.add(latent_room));
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Context<'_> {
    /// Finds the rows of bfloat16 numbers from position `first` on, for readers of `room` numbers each: where they lie in
    /// the cache, if they have that `width`, or else copies filled up with zeros.
    ///
    /// # Safety
    /// The cache holds bfloat16 numbers, the table holds the positions, and `copies` has room for as many rows where
    /// `width` and `room` differ.
    #[inline(always)]
    pub(super) unsafe fn addresses(
        &self,
        first: usize,
        (width, room): (usize, usize),
        copies: *mut u16,
        rows: &mut [*const u32],
    ) {
        for (place, row) in rows.iter_mut().enumerate() {
            let from = self.number(self.start(first + place));
            *row = from.cast();
            if width != room {
                // SAFETY: as the caller promises; the row lies in the cache, because its page does.
                unsafe {
                    let to = copies.add(place * room);
                    std::ptr::copy_nonoverlapping(from, to, width);
                    std::slice::from_raw_parts_mut(to.add(width), room - width).fill(0);
                    *row = to.cast_const().cast();
                }
            }
        }
    }

    /// Asks for the rows of some positions, to be kept in the second-level cache; the table holds them.
    #[inline(always)]
    pub(super) fn ask(&self, positions: std::ops::Range<usize>) {
        let bytes = 2 * (self.widths.latent + self.widths.rope);
        for position in positions {
            let row = self.number(self.start(position)).cast::<u8>();
            for line in (0..bytes).step_by(LINE_BYTES) {
                prefetch(row.wrapping_add(line));
            }
        }
    }

    /// Copies the rotated key of a position.
    ///
    /// # Safety
    /// The cache holds bfloat16 numbers, the table holds the position, and `to` has room.
    #[inline(always)]
    pub(super) unsafe fn copy_rotated(&self, position: usize, to: *mut u16) {
        let from = self.number(self.start(position) + self.widths.latent);
        // SAFETY: as the caller promises; the row lies in the cache, because its page does.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.widths.rope) };
    }

    /// The address of a bfloat16 number of the cache.
    #[inline(always)]
    fn number(&self, at: usize) -> *const u16 {
        match self.latents {
            Latents::Bf16(values) => values.as_ptr().wrapping_add(at).cast(),
            Latents::F32(_) => std::ptr::null(),
        }
    }
}

/// Widens `count` numbers, and zeros up to the next whole register.
#[inline(always)]
unsafe fn widen<L: Arithmetic>(from: *const u16, count: usize, to: *mut f32) {
    let whole = count / L::WIDTH * L::WIDTH;
    // SAFETY: the caller gives `count` numbers and room for whole registers.
    unsafe {
        for at in (0..whole).step_by(L::WIDTH) {
            L::widen(from.add(at)).store(to.add(at));
        }
        if whole < count {
            L::zero().store(to.add(whole));
            for at in whole..count {
                *to.add(at) = f32::from_bits(u32::from(*from.add(at)) << 16);
            }
        }
    }
}

/// As [`widen`], for numbers that are float32 already.
#[inline(always)]
unsafe fn copy<L: Arithmetic>(from: *const f32, count: usize, to: *mut f32) {
    let whole = count / L::WIDTH * L::WIDTH;
    // SAFETY: the caller gives `count` numbers and room for whole registers.
    unsafe {
        for at in (0..whole).step_by(L::WIDTH) {
            L::load(from.add(at)).store(to.add(at));
        }
        if whole < count {
            L::zero().store(to.add(whole));
            for at in whole..count {
                *to.add(at) = *from.add(at);
            }
        }
    }
}
