//! Generating text: sessions (one sequence with its cache), groups of several, samplers, and
//! streams of pieces.

pub mod doctor;
mod evaluate;
mod group;
mod measure;
mod sampler;
mod session;
mod stream;

pub use evaluate::{Divergence, Perplexity, Windows};
pub use group::Group;
pub use measure::Timed;
pub use sampler::{Sampler, Sampling};
pub use session::{Phase, Session, SessionOptions};
pub use stream::{Finish, Piece, TokenStream};
