pub mod caps;
pub mod dtype;
pub mod error;
pub mod host;
pub mod kernels;
pub mod quant;
pub mod shape;
pub use error::{Error, Result};
