//! LLaMA-family models on any Vulkan, Metal or DX12 GPU, through hand-written WGSL kernels.
//!
//! ```no_run
//! use wgllama::{Context, ContextOptions, LoadOptions, Model, Sampling, SessionOptions};
//!
//! # fn main() -> wgllama::Result<()> {
//! let ctx = Context::new(&ContextOptions::default())?;
//! let model = Model::load(&ctx, "models/smollm2", &LoadOptions::default())?;
//! let mut session = model.session(&SessionOptions::default())?;
//! for piece in session.generate("The sea was", &Sampling::default().max_tokens(64))? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! One level lower a [`Session`] takes token ids and gives logits ([`Session::prefill`],
//! [`Session::logits`], [`Session::step`], [`Session::truncate`]), prints its launches
//! ([`Session::plan`]) and reads intermediate results ([`Session::capture`]). Below that,
//! [`graph`] says what is computed, [`plan`] how, [`kernels`] with which shaders, and [`gpu`]
//! runs it; see `docs/ARCHITECTURE.md`.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::print_stdout)
)]

pub mod audit;
pub mod caps;
pub mod dtype;
pub mod error;
pub mod files;
pub mod generate;
pub mod gpu;
pub mod graph;
pub mod host;
pub mod kernels;
pub mod model;
mod native;
pub mod nonlinearity;
pub mod plan;
pub mod quant;
pub mod shape;
pub mod tokenizer;

pub use caps::Caps;
pub use dtype::{Activations, KvFormat, WeightFormat};
pub use error::{Error, Result};
pub use generate::{Finish, Group, Phase, Piece, Sampler, Sampling, Session, SessionOptions, TokenStream};
pub use gpu::{Context, ContextOptions};
pub use model::{LoadOptions, Lora, Model, ModelFiles};
pub use tokenizer::{ChatOptions, Message, Specials, Tokenizer};
