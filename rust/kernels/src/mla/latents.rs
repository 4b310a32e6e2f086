//! Cached rows, gathered from their pages into a tile of float32 numbers.

use abyssal_quant::Bf16;

use super::arithmetic::Arithmetic;

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
            let position = first + place;
            let page = self.table[position / self.page_size] as usize;
            let row = page * self.page_size + position % self.page_size;
            let start = row * (latent + rope);
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
