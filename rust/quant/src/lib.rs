//! FP8 and MXFP4 block formats: exact conversion, quantize, dequantize, linear.
