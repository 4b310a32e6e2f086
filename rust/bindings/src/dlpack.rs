//! The part of dlpack.h 1.3 that `tensor.rs` reads: declarations only.
//!
//! Source: <https://github.com/dmlc/dlpack/blob/v1.3/include/dlpack/dlpack.h>, Apache-2.0.

use std::ffi::{c_int, c_void};

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// `DLTensor`, with `DLDevice` and `DLDataType` written out.
#[repr(C)]
pub(crate) struct Tensor {
    pub(crate) data: *mut c_void,
    pub(crate) device_type: i32,
    pub(crate) device_id: i32,
    pub(crate) ndim: i32,
    pub(crate) code: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
    pub(crate) shape: *mut i64,
    pub(crate) strides: *mut i64,
    pub(crate) byte_offset: u64,
}

impl Tensor {
    pub(crate) fn empty() -> Self {
        Self {
            data: std::ptr::null_mut(),
            device_type: 0,
            device_id: 0,
            ndim: 0,
            code: 0,
            bits: 0,
            lanes: 0,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        }
    }
}

/// `DLPackExchangeAPI`, with its header written out. Functions that are not called are opaque pointers.
#[repr(C)]
pub(crate) struct ExchangeApi {
    pub(crate) version: Version,
    pub(crate) previous: *const c_void,
    pub(crate) managed_tensor_allocator: *const c_void,
    pub(crate) managed_tensor_from_py_object: *const c_void,
    pub(crate) managed_tensor_to_py_object: *const c_void,
    pub(crate) dltensor_from_py_object: Option<Describe>,
    pub(crate) current_work_stream: *const c_void,
}

/// Writes the view of a Python tensor without taking a reference; zero, or minus one with an exception set.
pub(crate) type Describe = unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int;
