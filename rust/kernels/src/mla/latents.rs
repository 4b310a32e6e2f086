//! Cached rows, gathered from their pages into a tile of numbers.

use abyssal_quant::{Bf16, Element};

use super::arithmetic::Arithmetic;
use super::fp8_row::Fp8Row;
#[cfg(target_arch = "x86_64")]
use crate::lanes::prefetch;

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// The rows of a layer's cache: a latent and a rotated key each.
#[derive(Debug, Clone, Copy)]
pub enum Latents<'a> {
    /// bfloat16, `[slots, kv_lora + rope]`.
    Bf16(&'a [Bf16]),
    /// float32, `[slots, kv_lora + rope]`.
    F32(&'a [f32]),
    /// FP8 codes of the latent, a scale for each 128 of them, and the key in bfloat16: bytes, `[slots, fp8_row_bytes]`.
    Fp8(&'a [u8]),
}

impl Latents<'_> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Fp8(bytes) => bytes.len(),
        }
    }

    /// Elements of a row.
    pub(super) fn row(&self, latent: usize, rope: usize) -> usize {
        match self {
            Self::Bf16(_) | Self::F32(_) => latent + rope,
            Self::Fp8(_) => fp8_row_bytes(latent, rope),
        }
    }
}

/// Bytes of a row in FP8.
pub fn fp8_row_bytes(kv_lora: usize, rope: usize) -> usize {
    Fp8Row::new(kv_lora, rope).bytes()
}

/// The rows of a layer's cache, to be written.
#[derive(Debug)]
pub enum Cache<'a> {
    /// As [`Latents::F32`].
    F32(&'a mut [f32]),
    /// As [`Latents::Bf16`].
    Bf16(&'a mut [Bf16]),
    /// As [`Latents::Fp8`].
    Fp8(&'a mut [u8]),
}

impl Cache<'_> {
    /// The rows, to be read.
    pub fn latents(&self) -> Latents<'_> {
        match self {
            Self::F32(values) => Latents::F32(values),
            Self::Bf16(values) => Latents::Bf16(values),
            Self::Fp8(bytes) => Latents::Fp8(bytes),
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
    /// The row of a position in the cache.
    #[inline(always)]
    fn slot(&self, position: usize) -> usize {
        let page = self.table[position / self.page_size] as usize;
        page * self.page_size + position % self.page_size
    }

    /// Where the row of a position begins in a cache of plain numbers.
    #[inline(always)]
    fn start(&self, position: usize) -> usize {
        self.slot(position) * (self.widths.latent + self.widths.rope)
    }

    /// How rows lie in a cache in FP8.
    #[inline(always)]
    fn fp8(&self) -> Fp8Row {
        Fp8Row::new(self.widths.latent, self.widths.rope)
    }

    /// The row of a position in a cache in FP8.
    #[inline(always)]
    fn packed<'b>(&self, bytes: &'b [u8], position: usize) -> &'b [u8] {
        let size = self.fp8().bytes();
        &bytes[self.slot(position) * size..][..size]
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
                    Latents::Fp8(bytes) => {
                        let row = self.packed(bytes, first + place);
                        let to = std::slice::from_raw_parts_mut(to, row_room);
                        let (latents, key) = to.split_at_mut(latent_room);
                        self.fp8().latent(row, &mut latents[..latent]);
                        latents[latent..].fill(0.0);
                        for (to, value) in key.iter_mut().zip(self.fp8().rotated(row)) {
                            *to = value.load();
                        }
                        key[rope..].fill(0.0);
                    }
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
    /// Whether readers of `room` numbers of each row, of `width` in the cache, are given copies.
    #[inline(always)]
    pub(super) fn copies(&self, (width, room): (usize, usize)) -> bool {
        width != room || matches!(self.latents, Latents::Fp8(_))
    }

    /// Finds the rows from position `first` on in bfloat16, for readers of `room` numbers each: where they lie in the cache,
    /// or copies filled up with zeros. The `width` is that of the latent, or of latent and rotated key.
    ///
    /// # Safety
    /// The cache holds bfloat16 numbers or FP8 codes, the table holds the positions, and there is room for copies of all
    /// rows if there are any.
    #[inline(always)]
    pub(super) unsafe fn addresses(
        &self,
        first: usize,
        (width, room): (usize, usize),
        copies: *mut u16,
        rows: &mut [*const u32],
    ) {
        if let Latents::Fp8(bytes) = self.latents {
            let (fp8, latent) = (self.fp8(), self.widths.latent);
            for (place, row) in rows.iter_mut().enumerate() {
                let packed = self.packed(bytes, first + place);
                let to = copies.wrapping_add(place * room);
                *row = to.cast_const().cast();
                // SAFETY: as the caller promises; a bfloat16 number is transparent over `u16`.
                let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<Bf16>(), room) };
                let (latents, rest) = to.split_at_mut(latent);
                fp8.latent(packed, latents);
                rest.fill(Bf16(0));
                let key = &mut rest[..width - latent];
                for (to, value) in key.iter_mut().zip(fp8.rotated(packed)) {
                    *to = value;
                }
            }
            return;
        }
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
        let Widths { latent, rope, .. } = self.widths;
        let bytes = match self.latents {
            Latents::Fp8(_) => self.fp8().bytes(),
            _ => 2 * (latent + rope),
        };
        for position in positions {
            let row = match self.latents {
                Latents::Fp8(packed) => packed.as_ptr().wrapping_add(self.slot(position) * bytes),
                _ => self.number(self.start(position)).cast::<u8>(),
            };
            for line in (0..bytes).step_by(LINE_BYTES) {
                prefetch(row.wrapping_add(line));
            }
        }
    }

    /// Copies the rotated key of a position.
    ///
    /// # Safety
    /// The cache holds bfloat16 numbers or FP8 codes, the table holds the position, and `to` has room.
    #[inline(always)]
    pub(super) unsafe fn copy_rotated(&self, position: usize, to: *mut u16) {
        if let Latents::Fp8(bytes) = self.latents {
            let key = self.fp8().rotated(self.packed(bytes, position));
            for (place, value) in key.enumerate() {
                // SAFETY: as the caller promises.
                unsafe { *to.add(place) = value.0 };
            }
            return;
        }
        let from = self.number(self.start(position) + self.widths.latent);
        // SAFETY: as the caller promises; the row lies in the cache, because its page does.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.widths.rope) };
    }

    /// The address of a bfloat16 number of the cache.
    #[inline(always)]
    fn number(&self, at: usize) -> *const u16 {
        match self.latents {
            Latents::Bf16(values) => values.as_ptr().wrapping_add(at).cast(),
            Latents::F32(_) | Latents::Fp8(_) => std::ptr::null(),
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
