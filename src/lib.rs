//! Portcullis.
#![forbid(unsafe_code)]
