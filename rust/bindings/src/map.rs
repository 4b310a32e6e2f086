//! All mapping of files into memory passes through this file.
//!
//! A mapped file is read like memory and costs none of its own; who changes or cuts it meanwhile changes what is read,
//! or ends the process (the system's answer to reading past the end of a file). Whoever cannot rule that out reads the
//! file into memory instead.

#![allow(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::ptr;

use memmap2::Mmap;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// The bytes of a whole file.
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Read(Vec<u8>),
}

impl FileBytes {
    /// Maps the file, or reads it into memory.
    pub(crate) fn open(path: &Path, mapped: bool) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no regular file", path.display()),
            ));
        }
        // An empty file cannot be mapped.
        if mapped && metadata.len() > 0 {
            // SAFETY: the map is read-only, and nothing here relies on bytes staying the same between two reads: each
            // value is a plain byte. That the file is not cut while it is mapped is the caller's to see to, as said
            // above and in the Python documentation.
            return Ok(Self::Mapped(unsafe { Mmap::map(&file)? }));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self::Read(bytes))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

/// A part of a file's bytes as a read-only Python buffer.
#[pyclass(frozen, module = "abyssal.kvcache")]
pub(crate) struct FileBuffer {
    bytes: FileBytes,
    range: Range<usize>,
}

impl FileBuffer {
    /// The bytes in `range`, which the caller has checked to lie within the file.
    pub(crate) fn new(bytes: FileBytes, range: Range<usize>) -> Self {
        Self { bytes, range }
    }
}

#[pymethods]
impl FileBuffer {
    // SAFETY: called by the interpreter alone, with a view to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let Some(bytes) = this.bytes.as_slice().get(this.range.clone()) else {
            return Err(PyBufferError::new_err("the pages lie outside the file"));
        };
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        // SAFETY: `view` is writable; the bytes live as long as `slf`, to which the view gets a reference; the
        // interpreter refuses writable views of what is called read-only here.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                ptr::from_ref(bytes).cast_mut().cast(),
                bytes.len().cast_signed(),
                1,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// Token ids as a writable Python buffer, which numpy takes over without a copy.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct IdBuffer {
    ids: UnsafeCell<Vec<u32>>,
}

// SAFETY: Rust never reads or writes the ids again: it hands out their address, and drops them when no view is left.
unsafe impl Sync for IdBuffer {}

impl IdBuffer {
    /// Takes the ids over; room that they do not need is given back when it is much.
    pub(crate) fn new(mut ids: Vec<u32>) -> Self {
        if ids.capacity() > 1024 + 2 * ids.len() {
            ids.shrink_to_fit();
        }
        Self {
            ids: UnsafeCell::new(ids),
        }
    }
}

#[pymethods]
impl IdBuffer {
    // SAFETY: called by the interpreter alone, with a view to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        // SAFETY: the list itself is never changed, so its address and length stay; no reference to the ids is kept.
        let (address, bytes) = unsafe {
            let ids = &mut *slf.get().ids.get();
            (ids.as_mut_ptr(), std::mem::size_of_val(ids.as_slice()))
        };
        // SAFETY: `view` is writable; the ids live as long as `slf`, to which the view gets a reference.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address.cast(),
                bytes.cast_signed(),
                0,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}
