//! What several test files share: the device, the models that may lie beside the project, and
//! goldens. Where something is missing a test says so and passes, unless the environment
//! requires it (`REQUIRE_GPU`, `REQUIRE_SHARED`, `REQUIRE_SMOLLM2`, `REQUIRE_RADV`), as `make test` does.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use wgllama::{Activations, Context, ContextOptions, KvFormat, LoadOptions, Model, Session, SessionOptions};

#[path = "../../examples/tiny_model.rs"]
#[allow(dead_code)]
pub mod tiny;

fn required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|v| !v.is_empty())
}

pub fn skip<T>(what: &str, variable: &str) -> Option<T> {
    assert!(!required(variable), "{what} is missing, and {variable} is set");
    eprintln!("skipped: {what} is missing");
    None
}

/// The device that tests run on: `WGLLAMA_TEST_DEVICE`, else the best one. Each test opens its
/// own, so that tests run side by side: a software adapter works on one thread per device.
pub fn gpu() -> Option<Context> {
    Context::new(&device()).ok().or_else(|| skip("a GPU adapter", "REQUIRE_GPU"))
}

/// Options that open it. With `WGLLAMA_TEST_BASELINE` it has no more than WebGPU guarantees.
pub fn device() -> ContextOptions {
    let device = std::env::var("WGLLAMA_TEST_DEVICE").ok();
    ContextOptions { device, baseline: required("WGLLAMA_TEST_BASELINE"), ..Default::default() }
}

/// The folder with models and goldens beside the project: `WGLLAMA_SHARED`, else `../shared`.
pub fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("WGLLAMA_SHARED").map_or(beside, PathBuf::from);
    if path.join("models").is_dir() {
        Some(path)
    } else {
        skip("the shared folder of models", "REQUIRE_SHARED")
    }
}

/// SmolLM2-135M-Instruct in Q4_1: `WGLLAMA_SMOLLM2`, else where `make demo` puts it.
pub fn smollm2() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    let fallback = cache.join("wgllama/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("WGLLAMA_SMOLLM2").map_or(fallback, PathBuf::from);
    if path.exists() { Some(path) } else { skip("SmolLM2-135M-Instruct", "REQUIRE_SMOLLM2") }
}

/// A model on the test device.
pub fn load(context: &Context, path: &Path) -> Model {
    Model::load(context, path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// A session of `model` that rounds no activations.
pub fn session(model: &Model, kv: KvFormat, context: usize, chunk: usize) -> Session {
    model.session(&session_options(kv, context, chunk)).unwrap_or_else(|e| panic!("{e}"))
}

pub fn session_options(kv: KvFormat, context: usize, chunk: usize) -> SessionOptions {
    let activations = Activations::F32;
    SessionOptions { context: Some(context), kv, chunk: Some(chunk), activations, ..Default::default() }
}

/// Feeds `ids` and then the likeliest token, `n` times.
pub fn greedy(session: &mut Session, ids: &[u32], n: usize) -> Vec<u32> {
    session.prefill(ids).unwrap();
    let mut sampler = wgllama::Sampler::new(&wgllama::Sampling::default()).unwrap();
    (0..n).map(|_| session.step(&mut sampler).unwrap()).collect()
}

/// A safetensors file of results.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// A tensor's bytes, if there is one.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).ok().map(|t| t.data().to_vec())
    }

    fn words(&self, name: &str) -> Vec<u32> {
        let data = self.bytes(name).unwrap_or_else(|| panic!("{name} is missing"));
        data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name)
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_bits).collect()
    }
}

/// The largest difference of two equally long slices, and where it is.
pub fn max_error(found: &[f32], expected: &[f32]) -> (f32, usize) {
    assert_eq!(found.len(), expected.len());
    let mut worst = (0.0f32, 0);
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let error = if a.is_nan() { f32::INFINITY } else { (a - b).abs() };
        if error > worst.0 {
            worst = (error, i);
        }
    }
    worst
}

/// Asserts that all values are within `tolerance`; says the worst place where they are not.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let (error, at) = max_error(found, expected);
    assert!(
        error <= tolerance,
        "{what}: {} instead of {} at {at}: off by {error:e}, at most {tolerance:e} allowed",
        found[at],
        expected[at]
    );
}

/// Asserts that `found` follows `expected` for as long as the margin of the choice exceeds
/// `margin`; below it another id is no error, and what follows is another text.
pub fn assert_greedy(what: &str, found: &[u32], expected: &[u32], margins: &[f32], margin: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        if a != b {
            assert!(
                margins[i] <= margin,
                "{what}: id {i} is {a} instead of {b}, by a margin of {}",
                margins[i]
            );
            return;
        }
    }
}
