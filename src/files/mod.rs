//! Model files: bytes in, named host tensors and typed metadata out. Owns the containers
//! (safetensors, GGUF, JSON) and the memory map; every count and offset is checked here, so that
//! no file can cause a panic, a hang or an allocation larger than the file warrants.
//! Knows nothing of models: which keys and tensors there should be is `model`'s business, what the
//! bytes of a block mean is `quant`'s.

pub mod gguf;
pub mod json;
pub mod map;
pub mod safetensors;

pub use gguf::{Gguf, GgufWriter};
pub use json::JsonFile;
pub use map::MappedFile;
pub use safetensors::SafetensorsFolder;
