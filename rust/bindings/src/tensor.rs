//! All raw tensor memory of the package passes through this file.
//!
//! A [`Tensor`] is a borrowed view of a torch tensor, a numpy array or any other buffer: element type, shape and
//! strides, and a pointer that stays valid while the view holds the Python object. Extraction refuses what is not
//! plain dense CPU memory (other devices, meta, fake, sparse, quantized and nested tensors, lazily negated ones);
//! [`Tensor::as_slice`] then checks element type, contiguity and alignment and yields a slice tied to the view.
//!
//! Three sources, tried in this order:
//! 1. torch >= 2.10: the C table behind `torch.Tensor.__dlpack_c_exchange_api__`, one call and no allocation;
//! 2. older torch: `data_ptr()`, `shape`, `stride()`, `dtype`, `device`, `layout`;
//! 3. everything else: the buffer protocol.
//!
//! What it does not do: allocate tensors, copy, convert, or move between devices. As with torch's own operations,
//! a caller who resizes or frees a tensor from another thread during a call breaks the call.
//!
//! Source: dlpack.h 1.3 (github.com/dmlc/dlpack).

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::dlpack;
pub(crate) use crate::dtype::{Dtype, Element};
use crate::error::BindError;
pub(crate) use crate::torch::Torch;

mod overlap;
mod usual;

pub(crate) use overlap::reject_overlap;
pub(crate) use usual::Usual;

/// No operation of this package takes tensors of more dimensions.
const MAX_DIMS: usize = 8;
const DLPACK_CPU: i32 = 1;

/// What keeps the memory of a view alive, and says whether it may be written.
enum Owner<'py> {
    Torch(Bound<'py, PyAny>),
    Buffer(PyUntypedBuffer),
}

/// Refuses torch tensors whose memory does not hold their values.
#[inline]
fn check_torch(
    object: &Bound<'_, PyAny>,
    torch: &Torch,
    dtype: Dtype,
    data: *mut u8,
    shape: &[usize],
) -> PyResult<()> {
    if data.is_null() && !shape.contains(&0) {
        return Err(not_plain_memory(object, None));
    }
    // Such views come from complex numbers: `x.conj().imag`.
    if matches!(dtype, Dtype::F16 | Dtype::F32 | Dtype::F64) && torch.is_neg(object)? {
        return Err(PyTypeError::new_err(
            "expected a plain tensor, got a lazily negated view; call .resolve_neg() first",
        ));
    }
    Ok(())
}

/// A view of dense CPU memory that lives as long as the Python object it holds.
pub(crate) struct Tensor<'py> {
    owner: Owner<'py>,
    data: *mut u8,
    dtype: Dtype,
    ndim: usize,
    shape: [usize; MAX_DIMS],
    strides: [isize; MAX_DIMS],
}

impl<'a, 'py> FromPyObject<'a, 'py> for Tensor<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        // Only a true torch tensor is asked for its memory: an object that merely has the attributes of one, or
        // claims its class, could name any address.
        match Torch::of(&object)? {
            None => Self::from_buffer(&object),
            Some(torch) => match torch.describe {
                Some(describe) => Self::from_exchange_api(&object, torch, describe),
                None => Self::from_data_ptr(&object, torch),
            },
        }
    }
}

impl<'py> Tensor<'py> {
    /// Reads the view through torch's C table.
    // Into the caller's frame: moving a view takes as long as reading its shape.
    #[inline(always)]
    fn from_exchange_api(
        object: &Bound<'py, PyAny>,
        torch: &Torch,
        describe: dlpack::Describe,
    ) -> PyResult<Self> {
        let mut view = dlpack::Tensor::empty();
        // SAFETY: callers pass objects of the type that the table was found on, we are attached to the interpreter,
        // and `view` is a writable DLTensor.
        let status = unsafe { describe(object.as_ptr().cast(), &raw mut view) };
        if status != 0 {
            let cause = PyErr::fetch(object.py());
            return Err(not_plain_memory(object, Some(cause)));
        }
        if view.device_type != DLPACK_CPU {
            return Err(not_plain_memory(object, None));
        }
        let ndim = checked_ndim(usize::try_from(view.ndim).unwrap_or(usize::MAX))?;
        let (mut shape, mut strides) = ([0; MAX_DIMS], [0; MAX_DIMS]);
        for dim in 0..ndim {
            // SAFETY: `shape` holds `ndim` entries, owned by the tensor, which we hold.
            shape[dim] = unsafe { *view.shape.add(dim) } as usize;
            // SAFETY: as for `shape`; since version 1.2 strides are never null when `ndim` is not zero.
            strides[dim] = unsafe { *view.strides.add(dim) } as isize;
        }
        let data = view
            .data
            .cast::<u8>()
            .wrapping_add(view.byte_offset as usize);
        let dtype = Dtype::from_dlpack(view.code, view.bits, view.lanes);
        check_torch(object, torch, dtype, data, &shape[..ndim])?;
        Ok(Self {
            owner: Owner::Torch(object.clone()),
            data,
            dtype,
            ndim,
            shape,
            strides,
        })
    }

    /// Reads the view through torch's Python attributes.
    fn from_data_ptr(object: &Bound<'py, PyAny>, torch: &Torch) -> PyResult<Self> {
        let py = object.py();
        let attribute = |name: &Bound<'py, PyString>| -> PyResult<String> {
            Ok(object.getattr(name)?.str()?.to_string())
        };
        let device = attribute(pyo3::intern!(py, "device"))?;
        let layout = attribute(pyo3::intern!(py, "layout"))?;
        let quantized = object
            .getattr(pyo3::intern!(py, "is_quantized"))?
            .is_truthy()?;
        if device != "cpu" || layout != "torch.strided" || quantized {
            return Err(not_plain_memory(object, None));
        }
        // Tensors without a shape or an address of their own (nested ones, for instance) raise.
        let refused = |cause| not_plain_memory(object, Some(cause));
        let sizes = object
            .getattr(pyo3::intern!(py, "shape"))
            .map_err(refused)?;
        let sizes = sizes.cast_into::<PyTuple>()?;
        let steps = object
            .call_method0(pyo3::intern!(py, "stride"))
            .map_err(refused)?;
        let steps = steps.cast_into::<PyTuple>()?;
        let ndim = checked_ndim(sizes.len())?;
        let (mut shape, mut strides) = ([0; MAX_DIMS], [0; MAX_DIMS]);
        for dim in 0..ndim {
            shape[dim] = sizes.get_item(dim)?.extract()?;
            strides[dim] = steps.get_item(dim)?.extract()?;
        }
        let name = attribute(pyo3::intern!(py, "dtype"))?;
        let dtype = Dtype::from_name(name.strip_prefix("torch.").unwrap_or(&name));
        let address: usize = object
            .call_method0(pyo3::intern!(py, "data_ptr"))
            .and_then(|address| address.extract())
            .map_err(refused)?;
        let data = std::ptr::with_exposed_provenance_mut(address);
        check_torch(object, torch, dtype, data, &shape[..ndim])?;
        Ok(Self {
            owner: Owner::Torch(object.clone()),
            data,
            dtype,
            ndim,
            shape,
            strides,
        })
    }

    /// Reads the view through the buffer protocol (numpy arrays, `array.array`, `memoryview`, ...).
    fn from_buffer(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Ok(buffer) = PyUntypedBuffer::get(object) else {
            return Err(PyTypeError::new_err(format!(
                "expected a torch.Tensor or a numpy array, got {}",
                object.get_type().fully_qualified_name()?
            )));
        };
        let ndim = checked_ndim(buffer.dimensions())?;
        let item_size = buffer.item_size();
        let dtype = Dtype::from_format(buffer.format(), item_size);
        let (mut shape, mut strides) = ([0; MAX_DIMS], [0; MAX_DIMS]);
        for dim in 0..ndim {
            shape[dim] = buffer.shape()[dim];
            // A stride that is no whole number of items cannot be contiguous; -1 never is.
            let bytes = buffer.strides()[dim];
            let whole = item_size > 0 && bytes % item_size.cast_signed() == 0;
            strides[dim] = if whole {
                bytes / item_size.cast_signed()
            } else {
                -1
            };
        }
        let data = buffer.buf_ptr().cast();
        let owner = Owner::Buffer(buffer);
        Ok(Self {
            owner,
            data,
            dtype,
            ndim,
            shape,
            strides,
        })
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape[..self.ndim]
    }

    /// The step of each dimension, in elements.
    pub(crate) fn strides(&self) -> &[isize] {
        &self.strides[..self.ndim]
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        // No tensor has that many elements; saturating keeps a strange object from looking small.
        self.shape()
            .iter()
            .fold(1, |product, &size| product.saturating_mul(size))
    }

    /// Whether the elements lie one after the other in row-major order. Dimensions of one element have no step,
    /// and a tensor without elements is contiguous.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.len() == 0
            || self
                .shape()
                .iter()
                .zip(self.strides())
                .rev()
                .all(|(&size, &stride)| {
                    let fits = size == 1 || stride == step;
                    step = step.saturating_mul(size.cast_signed());
                    fits
                })
    }

    /// The elements as a slice in row-major order.
    ///
    /// # Errors
    /// A `TypeError` for another element type, a `ValueError` for strided or misaligned memory.
    pub(crate) fn as_slice<T: Element>(&self, name: &str) -> Result<&[T], BindError> {
        let data = self.checked_pointer::<T>(name)?;
        // SAFETY: `checked_pointer` established type, alignment, contiguity and a non-null pointer to `len`
        // elements; the owner that `self` holds keeps them alive, and `T` has no invalid bit patterns.
        Ok(unsafe { std::slice::from_raw_parts(data, self.len()) })
    }

    /// The elements as a slice to write to.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`], and a `ValueError` for read-only memory and for tensors that require a gradient.
    pub(crate) fn as_mut_slice<T: Element>(&mut self, name: &str) -> Result<&mut [T], BindError> {
        match &self.owner {
            Owner::Buffer(buffer) if buffer.readonly() => {
                return Err(BindError::value_error(format!(
                    "{name}: the memory is read-only"
                )));
            }
            Owner::Torch(object)
                if !self.dtype.is_integer()
                    && object
                        .getattr(pyo3::intern!(object.py(), "requires_grad"))?
                        .is_truthy()? =>
            {
                return Err(BindError::value_error(format!(
                    "{name}: cannot write to a tensor that requires a gradient; pass .detach()"
                )));
            }
            _ => {}
        }
        let data = self.checked_pointer::<T>(name)?;
        // SAFETY: as in `as_slice`; the memory is writable, and callers that pass several tensors have called
        // `reject_overlap`, so that this is the only slice of these bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(data, self.len()) })
    }

    /// Checks everything that a slice of `T` needs.
    fn checked_pointer<T: Element>(&self, name: &str) -> Result<*mut T, BindError> {
        self.expect_dtype(name, T::DTYPES)?;
        if !self.is_contiguous() {
            return Err(self.misplaced(name, "a contiguous tensor"));
        }
        if self.len() == 0 {
            return Ok(std::ptr::NonNull::dangling().as_ptr());
        }
        self.aligned(name)
    }

    /// The address of the first element, if elements may lie there.
    fn aligned<T: Element>(&self, name: &str) -> Result<*mut T, BindError> {
        let data = self.data.cast::<T>();
        if !data.is_aligned() {
            return Err(BindError::value_error(format!(
                "{name}: expected memory aligned to {} bytes, got address {:p}",
                align_of::<T>(),
                self.data
            )));
        }
        Ok(data)
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// A `ValueError` that names both shapes.
    pub(crate) fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<(), BindError> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(BindError::value_error(format!(
            "{name}: expected shape {shape:?}, got {:?}",
            self.shape()
        )))
    }

    /// Checks the element type and returns it.
    ///
    /// # Errors
    /// A `TypeError` that names the types.
    pub(crate) fn expect_dtype(&self, name: &str, any_of: &[Dtype]) -> Result<Dtype, BindError> {
        if any_of.contains(&self.dtype) {
            return Ok(self.dtype);
        }
        let names: Vec<&str> = any_of.iter().map(|dtype| dtype.name()).collect();
        Err(BindError::type_error(format!(
            "{name}: expected dtype {}, got {}",
            names.join(" or "),
            self.dtype
        )))
    }
}

impl Tensor<'_> {
    /// The elements from the first to the last as they lie in memory, with whatever lies between them; for readers
    /// that step over what is not theirs.
    ///
    /// # Errors
    /// A `TypeError` for another element type, a `ValueError` for misaligned memory and for steps backward.
    pub(crate) fn as_span<T: Element>(&self, name: &str) -> Result<&[T], BindError> {
        self.expect_dtype(name, T::DTYPES)?;
        if self.len() == 0 {
            return Ok(&[]);
        }
        let steps = self.shape().iter().zip(self.strides());
        let mut last = 0;
        for (&size, &stride) in steps.filter(|&(&size, _)| size > 1) {
            let Ok(stride) = usize::try_from(stride) else {
                return Err(self.misplaced(name, "steps forward in memory"));
            };
            last += stride * (size - 1);
        }
        let data = self.aligned::<T>(name)?;
        // SAFETY: type and alignment are checked; the pointer is that of the first element, the last one is `last`
        // further on and in the same allocation, which the owner keeps alive; `T` has no invalid bit patterns.
        Ok(unsafe { std::slice::from_raw_parts(data, last + 1) })
    }

    /// Asks the system for large pages behind memory that nothing was written to yet: a new result of megabytes is
    /// otherwise paid for with a page fault every 4 KB.
    pub(crate) fn prefer_large_pages(&self) {
        #[cfg(target_os = "linux")]
        {
            // A multiple of every page size.
            const PAGE: usize = 1 << 16;
            let (start, end) = self.extent();
            let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
            if end > start {
                let from = self.data.with_addr(start).cast();
                // SAFETY: whole pages inside the tensor; the advice changes no contents, and the answer may be no.
                unsafe { libc::madvise(from, end - start, libc::MADV_HUGEPAGE) };
            }
        }
    }

    /// An error about the layout.
    pub(crate) fn misplaced(&self, name: &str, wanted: &str) -> BindError {
        BindError::value_error(format!(
            "{name}: expected {wanted}, got shape {:?} with strides {:?}; call .contiguous()",
            self.shape(),
            self.strides()
        ))
    }
}

/// A contiguous torch tensor whose memory stays for as long as this does.
///
/// It holds an alias of its own, so that the memory stays whatever becomes of the object that was given, and later
/// changes of the numbers are seen. As with torch's own aliases, resizing the storage under it breaks it.
pub(crate) struct Held {
    _alias: Py<PyAny>,
    data: *const u8,
    dtype: Dtype,
    len: usize,
    extent: (usize, usize),
}

// SAFETY: the memory is only read, and belongs to the alias, which any thread may hold and let go.
unsafe impl Send for Held {}
// SAFETY: as above.
unsafe impl Sync for Held {}

impl Held {
    /// Keeps a tensor whose elements are `T`s.
    ///
    /// # Errors
    /// What is no torch tensor in CPU memory, not contiguous, or of other elements.
    pub(crate) fn new<T: Element>(
        name: &str,
        object: &Bound<'_, PyAny>,
    ) -> Result<Self, BindError> {
        let given: Tensor<'_> = object.extract()?;
        if !matches!(given.owner, Owner::Torch(_)) {
            return Err(BindError::type_error(format!(
                "{name}: expected a torch.Tensor"
            )));
        }
        let alias = object.call_method0(pyo3::intern!(object.py(), "detach"))?;
        let tensor: Tensor<'_> = alias.extract()?;
        let data = tensor.checked_pointer::<T>(name)?;
        Ok(Self {
            data: data.cast_const().cast(),
            dtype: tensor.dtype(),
            len: tensor.len(),
            extent: tensor.extent(),
            _alias: alias.unbind(),
        })
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements, row after row; none if their type is another one.
    pub(crate) fn as_slice<T: Element>(&self) -> &[T] {
        if !T::DTYPES.contains(&self.dtype) {
            debug_assert!(false, "held as another type");
            return &[];
        }
        let data = self.data.cast::<T>();
        // SAFETY: `new` established contiguity, alignment for the type's elements and a pointer to so many of them; the
        // alias keeps them, and `T` has no invalid bit patterns.
        unsafe { std::slice::from_raw_parts(data, self.len) }
    }

    /// Whether an output lies in this memory.
    pub(crate) fn overlaps(&self, output: &Tensor<'_>) -> bool {
        let (start, end) = output.extent();
        start < self.extent.1 && self.extent.0 < end
    }
}

fn checked_ndim(ndim: usize) -> PyResult<usize> {
    if ndim <= MAX_DIMS {
        return Ok(ndim);
    }
    Err(PyTypeError::new_err(format!(
        "expected at most {MAX_DIMS} dimensions, got {ndim}"
    )))
}

/// The error for a tensor that is not dense memory of this process.
fn not_plain_memory(object: &Bound<'_, PyAny>, cause: Option<PyErr>) -> PyErr {
    let describe = |name: &str| {
        object
            .getattr(name)
            .and_then(|value| value.str())
            .map_or_else(
                |_| format!("unknown {name}"),
                |text| text.to_string_lossy().into_owned(),
            )
    };
    let kind = object.get_type().qualname().map_or_else(
        |_| "tensor".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let error = PyTypeError::new_err(format!(
        "expected a dense tensor in CPU memory, got a {kind} of layout {} and dtype {} on device {}",
        describe("layout"),
        describe("dtype"),
        describe("device"),
    ));
    error.set_cause(object.py(), cause);
    error
}
