//! Generating text: sessions (one sequence with its cache), samplers, and streams of pieces.

mod sampler;
mod session;
mod stream;

pub use sampler::{Sampler, Sampling};
pub use session::{Phase, Session, SessionOptions};
pub use stream::{Finish, Piece, TokenStream};
