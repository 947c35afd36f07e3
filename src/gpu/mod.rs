//! The only module that names wgpu: the device, buffers, pipelines, and the executor that
//! encodes a plan's launches. Chooses nothing: what runs is decided in `plan` and `kernels`.

mod adapters;
mod buffers;
mod choices;
mod context;
mod disk;
mod executable;
mod pace;
mod pipelines;
mod timing;

pub use adapters::{AdapterReport, list_adapters};
pub use buffers::Buffer;
pub use choices::Choices;
#[doc(hidden)]
pub use context::Faults;
pub use context::{Context, ContextOptions};
pub use executable::{Buffers, Executable, Feed, Planes, StepTables, View};
pub use pace::Submits;
