//! Saved prefixes: the pages of a prompt's beginning as a file.
//!
//! What is in a page is the caller's affair: here pages are opaque bytes, with the tokens they belong to, the fingerprint
//! of the model that computed them and a description of their rows. A file is taken whole or refused whole: its lengths
//! follow from its header and are compared with the file's, and the last 32 bytes are SHA-256 of all before them.
//!
//! | offset | bytes | field, little-endian |
//! |---|---|---|
//! | 0 | 8 | `ABYSPAGE` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | tokens in a page |
//! | 16 | 8 | number of pages |
//! | 24 | 8 | bytes of a page |
//! | 32 | 4, 4 | lengths of fingerprint and row description |
//! | 40 | 8 | where the pages begin: the first multiple of 4096 after the token ids |
//! | 48 | 8 | length of the file |
//! | 56 | | fingerprint, row description (UTF-8), token ids (4 bytes each), zeros, pages, SHA-256 |
//!
//! No salt is stored: it belongs to who opens a sequence, not to the content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"ABYSPAGE";
const VERSION: u32 = 1;
const HEADER: u64 = 56;
const CHECKSUM: u64 = 32;
/// Pages begin at a multiple of this: mapped, they are aligned for every element type.
const ALIGNMENT: u64 = 4096;

/// The pages of a prefix, to be saved.
#[derive(Debug, Clone, Copy)]
pub struct Prefix<'a> {
    /// Names the model and its weights: pages of another one are useless.
    pub fingerprint: &'a str,
    /// Describes a page's rows, their element types above all.
    pub dtype: &'a str,
    /// Tokens in a page.
    pub page_size: usize,
    /// The tokens of all pages.
    pub token_ids: &'a [u32],
    /// The pages, one after the other.
    pub pages: &'a [u8],
}

/// A saved prefix that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPrefix {
    /// As in [`Prefix`].
    pub fingerprint: String,
    /// As in [`Prefix`].
    pub dtype: String,
    /// As in [`Prefix`].
    pub page_size: usize,
    /// As in [`Prefix`].
    pub token_ids: Vec<u32>,
    /// Bytes of one page.
    pub bytes_per_page: usize,
    /// Where in the file the pages lie.
    pub pages: Range<usize>,
}

/// The numbers of the header, and what follows from them.
#[derive(Debug, Clone, Copy)]
struct Layout {
    page_size: u64,
    num_pages: u64,
    bytes_per_page: u64,
    fingerprint: u64,
    dtype: u64,
}

impl Layout {
    fn tokens_at(&self) -> Option<u64> {
        HEADER
            .checked_add(self.fingerprint)?
            .checked_add(self.dtype)
    }

    fn pages_at(&self) -> Option<u64> {
        let tokens = self.num_pages.checked_mul(self.page_size)?;
        let end = self.tokens_at()?.checked_add(tokens.checked_mul(4)?)?;
        end.checked_next_multiple_of(ALIGNMENT)
    }

    fn checksum_at(&self) -> Option<u64> {
        let pages = self.num_pages.checked_mul(self.bytes_per_page)?;
        self.pages_at()?.checked_add(pages)
    }

    fn file_length(&self) -> Option<u64> {
        self.checksum_at()?.checked_add(CHECKSUM)
    }
}

impl Prefix<'_> {
    fn layout(&self) -> Result<Layout> {
        if self.page_size == 0 || u32::try_from(self.page_size).is_err() {
            return Err(Error::PageSize {
                asked: self.page_size,
            });
        }
        let num_pages = self.token_ids.len() / self.page_size;
        if !self.token_ids.len().is_multiple_of(self.page_size) {
            return Err(Error::PartialPage {
                tokens: self.token_ids.len(),
                page_size: self.page_size,
            });
        }
        let bytes_per_page = self.pages.len().checked_div(num_pages).unwrap_or(0);
        if bytes_per_page * num_pages != self.pages.len() {
            return Err(Error::PageBytes {
                bytes: self.pages.len(),
                pages: num_pages,
            });
        }
        for (what, text) in [("fingerprint", self.fingerprint), ("dtype", self.dtype)] {
            if u32::try_from(text.len()).is_err() {
                return Err(Error::SavedText {
                    what,
                    length: text.len(),
                });
            }
        }
        Ok(Layout {
            page_size: self.page_size as u64,
            num_pages: num_pages as u64,
            bytes_per_page: bytes_per_page as u64,
            fingerprint: self.fingerprint.len() as u64,
            dtype: self.dtype.len() as u64,
        })
    }

    /// Writes the file's bytes.
    ///
    /// # Errors
    /// [`Error::PageSize`], [`Error::PartialPage`], [`Error::PageBytes`], [`Error::SavedText`], and [`Error::Io`].
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let layout = self.layout()?;
        let places = (layout.tokens_at(), layout.pages_at(), layout.file_length());
        let (Some(tokens_at), Some(pages_at), Some(length)) = places else {
            return Err(Error::SavedHeader);
        };
        let mut out = Hashed {
            out,
            hash: Sha256::new(),
        };
        let mut write = || -> io::Result<()> {
            out.write(MAGIC)?;
            out.write(&VERSION.to_le_bytes())?;
            out.write(&(layout.page_size as u32).to_le_bytes())?;
            out.write(&layout.num_pages.to_le_bytes())?;
            out.write(&layout.bytes_per_page.to_le_bytes())?;
            out.write(&(layout.fingerprint as u32).to_le_bytes())?;
            out.write(&(layout.dtype as u32).to_le_bytes())?;
            out.write(&pages_at.to_le_bytes())?;
            out.write(&length.to_le_bytes())?;
            out.write(self.fingerprint.as_bytes())?;
            out.write(self.dtype.as_bytes())?;
            for &token in self.token_ids {
                out.write(&token.to_le_bytes())?;
            }
            let tokens_end = tokens_at + 4 * self.token_ids.len() as u64;
            let zeros = [0; ALIGNMENT as usize];
            out.write(&zeros[..(pages_at - tokens_end) as usize])?;
            out.write(self.pages)?;
            let checksum = out.hash.finalize_reset();
            out.out.write_all(&checksum)
        };
        write().map_err(|error| Error::io("write", &error))
    }

    /// Writes the file at `path`, whole or not at all: under another name in the same folder, flushed to the disk and
    /// renamed.
    ///
    /// # Errors
    /// As [`Prefix::write`]; then a file that was there before is still there.
    pub fn save(&self, path: &Path) -> Result<()> {
        // What can be refused is refused before a file is made.
        self.layout()?;
        let (partial, file) = new_file_beside(path)?;
        let saved = self.write_and_rename(file, &partial, path);
        if saved.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&partial);
        }
        saved
    }

    fn write_and_rename(&self, file: File, partial: &Path, path: &Path) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 16, file);
        self.write(&mut out)?;
        let file = out
            .into_inner()
            .map_err(|error| Error::io("write", error.error()))?;
        file.sync_all()
            .map_err(|error| Error::io("flush", &error))?;
        fs::rename(partial, path).map_err(|error| Error::io("rename", &error))?;
        // The new name is on the disk when the folder is; not every system can flush a folder.
        if let Ok(folder) = File::open(folder_of(path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file in the folder of `path`, under a name that nobody else uses.
fn new_file_beside(path: &Path) -> Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let partial = folder_of(path).join(format!(".{name}.{process}.{number}.partial"));
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&partial)
        {
            Ok(file) => return Ok((partial, file)),
            // Left by an earlier process of this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", &error)),
        }
    }
}

impl SavedPrefix {
    /// Reads and checks a file's bytes.
    ///
    /// # Errors
    /// [`Error::NotSaved`], [`Error::SavedVersion`], [`Error::SavedHeader`], [`Error::SavedLength`] and
    /// [`Error::SavedChecksum`], in this order.
    pub fn read(file: &[u8]) -> Result<Self> {
        let actual = file.len() as u64;
        let magic = file.get(..MAGIC.len());
        if magic != Some(MAGIC) {
            return Err(Error::NotSaved);
        }
        if actual < HEADER + CHECKSUM {
            let expected = HEADER + CHECKSUM;
            return Err(Error::SavedLength { expected, actual });
        }
        let version = number::<4>(file, 8) as u32;
        if version != VERSION {
            return Err(Error::SavedVersion { found: version });
        }
        let layout = Layout {
            page_size: number::<4>(file, 12),
            num_pages: number::<8>(file, 16),
            bytes_per_page: number::<8>(file, 24),
            fingerprint: number::<4>(file, 32),
            dtype: number::<4>(file, 36),
        };
        let places = (layout.tokens_at(), layout.pages_at(), layout.checksum_at());
        let (Some(tokens_at), Some(pages_at), Some(checksum_at)) = places else {
            return Err(Error::SavedHeader);
        };
        let length = layout.file_length();
        if layout.page_size == 0
            || Some(number::<8>(file, 48)) != length
            || number::<8>(file, 40) != pages_at
        {
            return Err(Error::SavedHeader);
        }
        if length != Some(actual) {
            let expected = length.unwrap_or_default();
            return Err(Error::SavedLength { expected, actual });
        }
        // From here on every place lies within the file.
        let (content, checksum) = file.split_at(checksum_at as usize);
        if Sha256::digest(content).as_slice() != checksum {
            return Err(Error::SavedChecksum);
        }
        let texts = &content[HEADER as usize..tokens_at as usize];
        let (fingerprint, dtype) = texts.split_at(layout.fingerprint as usize);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Error::SavedHeader);
        let tokens = (layout.num_pages * layout.page_size) as usize;
        let (ids, _) = content[tokens_at as usize..][..4 * tokens].as_chunks::<4>();
        Ok(Self {
            fingerprint: text(fingerprint)?,
            dtype: text(dtype)?,
            page_size: layout.page_size as usize,
            token_ids: ids.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect(),
            bytes_per_page: layout.bytes_per_page as usize,
            pages: pages_at as usize..checksum_at as usize,
        })
    }

    /// Checks that the pages are those of the caller's model.
    ///
    /// # Errors
    /// [`Error::SavedOther`] names what differs.
    pub fn expect(&self, fingerprint: &str, dtype: &str) -> Result<()> {
        let pairs = [
            ("fingerprint", fingerprint, &self.fingerprint),
            ("dtype", dtype, &self.dtype),
        ];
        for (what, expected, found) in pairs {
            if expected != found {
                return Err(Error::SavedOther {
                    what,
                    expected: expected.to_owned(),
                    found: found.clone(),
                });
            }
        }
        Ok(())
    }
}

/// The little-endian number of `N` bytes at an offset of the header.
fn number<const N: usize>(file: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(&file[at..at + N]);
    u64::from_le_bytes(bytes)
}
