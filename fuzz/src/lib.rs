//! What the fuzz targets do with their input. The targets of `cargo fuzz` and the short run of
//! `tests/fuzzing.rs` share this file, so that both look for the same: no panic, no more memory than
//! `Target::bound` allows, and what holds of every file that was accepted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use wgllama::files::{Gguf, JsonFile, MappedFile, SafetensorsFolder};
use wgllama::graph::reference::Source;
use wgllama::graph::{VectorId, WeightId};
use wgllama::host::{HostTensor, TensorSource};
use wgllama::model::{Config, ModelFiles, architecture};
use wgllama::plan::{PlanOptions, WeightLayout, lower};
use wgllama::{Caps, ChatOptions, KvFormat, Lora, Message, Specials, Tokenizer, quant};

/// A reader of files, and what it may take.
pub struct Target {
    pub name: &'static str,
    run: fn(&[u8]),
    /// Bytes of memory that it may take beside those for each byte of the file.
    pub constant: usize,
    /// Bytes of memory for each byte of the file.
    pub multiple: usize,
}

const MIB: usize = 1 << 20;

/// All targets. SECURITY.md states the bounds.
pub const TARGETS: [Target; 6] = [
    Target { name: "safetensors", run: safetensors, constant: MIB, multiple: 16 },
    Target { name: "gguf", run: gguf, constant: 64 * MIB, multiple: 192 },
    Target { name: "config", run: config, constant: 64 * MIB, multiple: 320 },
    Target { name: "tokenizer", run: tokenizer, constant: 64 * MIB, multiple: 192 },
    Target { name: "template", run: template, constant: 640 * MIB, multiple: 256 },
    Target { name: "folder", run: folder, constant: 64 * MIB, multiple: 320 },
];

/// Runs a target and checks what it took; answers that, in bytes.
pub fn run(name: &str, data: &[u8]) -> usize {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target of that name");
    let before = HELD.get();
    PEAK.set(before);
    (target.run)(data);
    let (peak, bound) =
        ((PEAK.get() - before).max(0) as usize, target.constant + target.multiple * data.len());
    assert!(peak <= bound, "{name} took {peak} bytes for a file of {}, more than {bound}", data.len());
    peak
}

/// The system's allocator, with a count of what the thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(change: i64) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: everything is left to the system's allocator; counting neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old and the new place may be there at once.
        count(size as i64);
        count(-(layout.size() as i64));
        unsafe { System.realloc(at, layout, size) }
    }
}

thread_local! {
    /// The folder for files of those readers that take no bytes.
    static FOLDER: TempDir = TempDir::new().expect("a temporary folder");
}

/// A folder with just these files.
fn in_folder<T>(files: &[(&str, &[u8])], then: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| {
        for entry in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
            std::fs::remove_file(entry.path()).expect("a file");
        }
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).expect("a file");
        }
        then(folder.path())
    })
}

/// What holds of the tensors of any container: each has the bytes of its shape, and together they
/// have no more than the file. Answers the values of each that could be decoded.
fn check_tensors(source: &dyn TensorSource, len: usize) {
    let mut bytes = 0;
    for name in source.names() {
        let tensor = source.tensor(name).expect("a tensor that is named");
        assert_eq!(source.describe(name), Some((tensor.format, tensor.shape.clone())));
        bytes += tensor.bytes.len();
        check_tensor(&tensor);
    }
    assert!(bytes <= len, "{bytes} bytes of tensors in a file of {len}");
}

/// Decodes a tensor, a few thousand values at a time.
fn check_tensor(tensor: &HostTensor) {
    assert_eq!(quant::row_bytes(tensor.format, tensor.len()), Some(tensor.bytes.len()));
    let blocks = 4096 / tensor.format.block_len();
    for bytes in tensor.bytes.chunks(blocks * tensor.format.block_bytes()) {
        let mut values =
            vec![f32::NAN; bytes.len() / tensor.format.block_bytes() * tensor.format.block_len()];
        quant::decode(tensor.format, bytes, &mut values);
        let bad = quant::bad_block(tensor.format, bytes).is_some();
        let blocks = tensor.format.block_len() > 1;
        assert!(
            !blocks || bad || values.iter().all(|v| v.is_finite()),
            "{} decodes to no number",
            tensor.format
        );
    }
}

fn safetensors(data: &[u8]) {
    let file = MappedFile::from_bytes("fuzzed.safetensors", data.to_vec());
    let Ok(files) = SafetensorsFolder::from_files("fuzzed", vec![file]) else { return };
    check_tensors(&files, data.len());
    for name in files.stored_names() {
        assert!(files.stored(name).is_some());
        assert_eq!(files.format_problem(name).is_some(), files.tensor(name).is_none());
    }
}

fn gguf(data: &[u8]) {
    let Ok(gguf) = Gguf::from_bytes("fuzzed.gguf", data.to_vec()) else { return };
    check_tensors(&gguf, data.len());
    for key in gguf.keys() {
        let _ = (gguf.strings(key), gguf.f32s(key), gguf.i32s(key), gguf.bools(key));
        let _ = (gguf.u64(key), gguf.f32(key), gguf.str(key), gguf.opt_bool(key));
    }
    if let Ok(tokenizer) = gguf.vocab().and_then(|v| Tokenizer::from_gguf(Path::new("fuzzed.gguf"), v)) {
        check_tokenizer(&tokenizer);
    }
    drop(gguf);
    in_folder(&[("model.gguf", data)], |folder| {
        if let Ok(files) = ModelFiles::open(&folder.join("model.gguf")) {
            check_model(&files);
        }
    });
}

/// A model whose files all fit: its weights can be read, and it has plans.
fn check_model(files: &ModelFiles) {
    let graph = files.graph();
    assert!(
        files.left_over().len() <= files.tensors().len() + files.gguf().map_or(0, |g| g.left_out().count())
    );
    for id in 0..graph.vectors.len() {
        files.vector_values(VectorId(id)).expect("a vector that was checked");
    }
    for (id, spec) in graph.weights.iter().enumerate() {
        let values = files.weight(graph, WeightId(id)).expect("a matrix that was checked");
        assert_eq!(values.len(), spec.rows * spec.cols);
    }
    for rope in &graph.ropes {
        let turned = rope.rotations(64);
        assert_eq!(turned.inv_freq.len(), rope.rotated / 2);
    }
    let caps = Caps::presets().into_iter().next().expect("a preset").1;
    let layouts: Result<Vec<_>, _> =
        graph.weights.iter().map(|w| WeightLayout::new(w, &files.formats(w)?, &caps)).collect();
    if let Ok(layouts) = layouts {
        let _ = lower(graph, &layouts, &caps, &PlanOptions::new(1, 1, KvFormat::F16));
    }
}

fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(json) = JsonFile::from_str("config.json", text) else { return };
    if let Ok(config) = Config::from_json(&json) {
        assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
        // What is not refused without any tensor has to be small.
        if config.num_hidden_layers <= 64 && config.experts.is_none() && config.num_attention_heads <= 64 {
            let _ = architecture(&config.model_type).and_then(|a| (a.graph)(&config));
        }
    }
    in_folder(&[("config.json", data), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")], |folder| {
        assert!(ModelFiles::open(folder).is_err(), "a model without tensors was opened");
    });
    in_folder(&[("model.safetensors.index.json", data)], |folder| {
        assert!(SafetensorsFolder::open(folder).is_err(), "shards that are not there were opened");
    });
}

/// Several files in one input: a line with `=== NAME` before each.
fn split_files(data: &[u8]) -> Vec<(&str, &[u8])> {
    const NAMES: [&str; 7] = [
        "config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ];
    let mut files = Vec::new();
    let mut rest = data;
    while let Some(start) = rest.strip_prefix(b"=== ") {
        let Some(name) = NAMES
            .into_iter()
            .find(|n| start.strip_prefix(n.as_bytes()).is_some_and(|r| r.starts_with(b"\n")))
        else {
            break;
        };
        let body = &start[name.len() + 1..];
        let end = body.windows(5).position(|w| w == b"\n=== ").unwrap_or(body.len());
        files.push((name, &body[..end]));
        rest = body.get(end + 1..).unwrap_or_default();
    }
    files
}

fn folder(data: &[u8]) {
    in_folder(&split_files(data), |folder| {
        let adapters: Vec<Lora> = Lora::open(folder, 1.0).into_iter().collect();
        let Ok(files) = ModelFiles::open(folder) else { return };
        check_model(&files);
        if let Ok(files) = files.with_adapters(&adapters) {
            check_model(&files);
        }
        if let Ok(tokenizer) = Tokenizer::from_folder(folder) {
            check_tokenizer(&tokenizer);
        }
    });
}

fn tokenizer(data: &[u8]) {
    in_folder(&[("tokenizer.json", data)], |folder| {
        let Ok(tokenizer) = Tokenizer::from_folder(folder) else { return };
        check_tokenizer(&tokenizer);
        let _ = Tokenizer::vocab(folder, tokenizer.vocab_size().min(4096))
            .and_then(|vocab| Tokenizer::from_gguf(folder, vocab))
            .map(|again| check_tokenizer(&again));
    });
}

const TEXT: &str =
    "The sea was 1234 <s> calm; don't\n\n  stop \u{e9}\u{1f600}\u{2581}<0x0A> aaaaaaaaaaaaaaaa</s>";

fn check_tokenizer(tokenizer: &Tokenizer) {
    for specials in [Specials::Parse, Specials::Text] {
        let Ok(ids) = tokenizer.encode(TEXT, specials) else { continue };
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "an id that is none");
        let whole = tokenizer.decode(&ids, true).expect("what was encoded decodes");
        let mut stream = tokenizer.stream();
        let mut pieces = String::new();
        for id in ids {
            pieces.extend(stream.push(id).expect("what decodes at once decodes in pieces"));
        }
        pieces.extend(stream.finish().expect("the rest decodes"));
        let _ = (whole, pieces);
    }
    let chat = [Message::new("user", TEXT), Message::new("assistant", "</s><s>")];
    let _ = tokenizer.encode_chat(&chat);
    let _ = tokenizer
        .with_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
        .encode_chat(&chat);
    let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX, 70_000], false);
}

fn template(data: &[u8]) {
    thread_local! {
        static PLAIN: Tokenizer = in_folder(&[("tokenizer.json", PLAIN_TOKENIZER.as_bytes())], |folder| {
            Tokenizer::from_folder(folder).expect("a tokenizer")
        });
    }
    let Ok(source) = std::str::from_utf8(data) else { return };
    PLAIN.with(|plain| {
        let tokenizer = plain.with_template(source);
        let mut call = Message::new("assistant", "");
        call.fields = json(r#"{"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, "<s>"]}}}]}"#);
        let chat =
            [Message::new("system", "Be brief."), Message::new("user", "<s>Hi\n\u{e9}"), call, Message::new("tool", "42")];
        let options = ChatOptions {
            tools: vec![json::<Value>(r#"{"type": "function", "function": {"name": "f", "parameters": {}}}"#)],
            variables: json(r#"{"enable_thinking": false}"#),
        };
        let rendered = tokenizer.render_chat(&chat, true);
        assert!(rendered.map_or(0, |text| text.len()) <= MOST_RENDERED, "a text beyond all bounds");
        let _ = tokenizer.encode_chat_with(&chat, &options);
    });
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("JSON")
}

/// Bytes of the longest text that a template can make.
const MOST_RENDERED: usize = 256_000_000;

/// Four tokens, of which two are special.
const PLAIN_TOKENIZER: &str = r#"{"version": "1.0",
    "added_tokens": [{"id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true},
                     {"id": 3, "content": "</s>", "single_word": false, "lstrip": true, "rstrip": true,
                      "normalized": false, "special": true}],
    "model": {"type": "BPE", "unk_token": "a", "vocab": {"a": 0, "b": 1, "<s>": 2, "</s>": 3}, "merges": []}}"#;
