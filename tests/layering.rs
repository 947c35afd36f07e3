//! The layers of docs/ARCHITECTURE.md, read from the `use crate::` lines: a module may name
//! only those below it.

use std::path::{Path, PathBuf};

/// Modules by layer, lowest first. Those of one row do not see each other, except where
/// `ALLOWED` says so.
const LAYERS: [&[&str]; 8] = [
    &["error", "shape", "dtype", "caps", "host", "native", "nonlinearity"],
    &["files", "quant", "tokenizer"],
    &["kernels", "graph"],
    &["plan"],
    &["gpu"],
    &["audit"],
    &["model"],
    &["generate"],
];

/// Within a row: the lowest row is one family, and GGUF metadata fills in the vocabulary.
const ALLOWED: [(&str, &str); 1] = [("files", "tokenizer")];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Modules that a file names through `crate::`, and the line.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for piece in code.split("crate::").skip(1) {
            let listed =
                piece.strip_prefix('{').map_or(piece, |rest| rest.split('}').next().unwrap_or_default());
            let count = if piece.starts_with('{') { usize::MAX } else { 1 };
            for item in listed.split(',').take(count) {
                let word = |c: &char| c.is_alphanumeric() || *c == '_';
                found.push((i + 1, item.trim().chars().take_while(word).collect()));
            }
        }
    }
    found
}

#[test]
fn modules_use_only_what_lies_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main", "cli"].contains(&module) {
            continue;
        }
        let own =
            layer(module).unwrap_or_else(|| panic!("{module} has no layer: name it in tests/layering.rs"));
        for (line, used) in uses(&std::fs::read_to_string(&file).unwrap()) {
            // Names that the crate root re-exports from the lowest layer.
            let Some(theirs) = layer(&used) else {
                let root =
                    ["Error", "Result", "WeightFormat", "KvFormat", "Context"].contains(&used.as_str());
                assert!(root, "{}:{line} uses crate::{used}", relative.display());
                continue;
            };
            let same_row = theirs == own && own > 0 && used != module;
            if theirs > own || (same_row && !ALLOWED.contains(&(module, used.as_str()))) {
                wrong.push(format!("{}:{line} uses {used}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_gpu_names_the_graphics_api() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files.iter().filter(|f| !f.starts_with(src.join("gpu"))) {
        for (i, line) in std::fs::read_to_string(file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            assert!(!code.contains("wgpu::"), "{}:{}", file.display(), i + 1);
        }
    }
}
