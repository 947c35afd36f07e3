//! Files that are right are read as they are; every way in which a file can be wrong has a test of
//! its own, which asserts on the error's variant and that its message names the thing.

mod support;

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;
use wgllama::Error;
use wgllama::dtype::WeightFormat;
use wgllama::files::gguf::Value;
use wgllama::files::{Gguf, GgufWriter, JsonFile, MappedFile, SafetensorsFolder};
use wgllama::host::TensorSource;

/// Fails unless `error` is of the variant and its message has all of `parts`.
macro_rules! assert_error {
    ($result:expr, $variant:ident, $($part:expr),+) => {{
        let error = $result.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::$variant { .. }), "wrong variant: {error:?}");
        let message = error.to_string();
        $(assert!(message.contains($part), "'{}' is not in: {message}", $part);)+
    }};
}

// ---- safetensors

/// A file from its header's text and its data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// One header entry.
fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open_single(bytes: &[u8]) -> wgllama::Result<SafetensorsFolder> {
    SafetensorsFolder::open(folder(&[("model.safetensors", bytes)]).path())
}

fn open_header(entries: &[String], data: usize) -> wgllama::Result<SafetensorsFolder> {
    open_single(&safetensors(&header(entries), &vec![0; data]))
}

/// Two weights, a buffer of integers, and metadata.
fn valid_safetensors() -> Vec<u8> {
    let entries = [
        r#""__metadata__":{"format":"pt"}"#.to_string(),
        entry("b", "BF16", "[2]", 24, 28),
        entry("a", "F32", "[2,3]", 0, 24),
        entry("ids", "I64", "[1]", 28, 36),
    ];
    let data: Vec<u8> = (0..36).collect();
    safetensors(&header(&entries), &data)
}

#[test]
fn safetensors_round_trip() {
    let folder = open_single(&valid_safetensors()).unwrap();
    assert_eq!(folder.names(), ["a", "b"]);
    let a = folder.tensor("a").unwrap();
    assert_eq!((a.format, a.shape.as_slice(), a.bytes.len()), (WeightFormat::F32, &[2, 3][..], 24));
    assert_eq!(a.bytes[..3], [0, 1, 2]);
    let b = folder.tensor("b").unwrap();
    assert_eq!(
        (b.format, b.shape.as_slice(), b.bytes),
        (WeightFormat::BF16, &[2][..], (&[24, 25, 26, 27][..]).into())
    );
    assert!(folder.tensor("c").is_none() && folder.format_problem("c").is_none());
    assert!(folder.format_problem("a").is_none());
}

#[test]
fn safetensors_scalars_and_empty_tensors() {
    let entries = [entry("none", "F16", "[0,4]", 0, 0), entry("one", "F32", "[]", 0, 4)];
    let folder = open_header(&entries, 4).unwrap();
    assert_eq!(folder.names(), ["none", "one"]);
    assert!(folder.tensor("none").unwrap().is_empty());
    assert_eq!(folder.tensor("one").unwrap().len(), 1);
}

#[test]
fn safetensors_buffers_of_other_types_are_left_out() {
    let folder = open_single(&valid_safetensors()).unwrap();
    assert!(folder.tensor("ids").is_none());
    assert_error!(
        Err::<(), _>(folder.format_problem("ids").unwrap()),
        UnsupportedFormat,
        "'ids'",
        "I64",
        "BF16"
    );
}

#[test]
fn safetensors_missing_file() {
    let dir = folder(&[("config.json", b"{}")]);
    assert_error!(SafetensorsFolder::open(dir.path()), Io, "no model.safetensors", "index.json");
    assert_error!(SafetensorsFolder::open(&dir.path().join("absent")), Io, "absent");
    assert_error!(SafetensorsFolder::open(&dir.path().join("config.json")), Io, "config.json");
}

#[test]
fn safetensors_folder_in_place_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert_error!(SafetensorsFolder::open(dir.path()), Io, "model.safetensors", "not a regular file");
}

#[test]
fn safetensors_empty_file() {
    assert_error!(open_single(b""), Safetensors, "model.safetensors", "truncated: 0 bytes");
}

#[test]
fn safetensors_truncated_length() {
    assert_error!(open_single(&[1, 0, 0]), Safetensors, "truncated: 3 bytes");
}

#[test]
fn safetensors_truncated_header() {
    assert_error!(open_single(&valid_safetensors()[..40]), Safetensors, "truncated header", "32 found");
}

#[test]
fn safetensors_truncated_data() {
    let bytes = valid_safetensors();
    let end = bytes.len() - 1;
    assert_error!(open_single(&bytes[..end]), Safetensors, "truncated", "'ids'", "byte 36", "found 35");
}

#[test]
fn safetensors_oversized_header() {
    for length in [100_000_001, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        assert_error!(open_single(&bytes), Safetensors, "oversized header", &length.to_string());
    }
}

#[test]
fn safetensors_header_is_not_json() {
    assert_error!(open_single(&safetensors("{\"a\":", &[])), Safetensors, "JSON", "line 1");
    assert_error!(open_single(&safetensors("[]", &[])), Safetensors, "JSON", "one entry a tensor");
    assert_error!(open_single(&[&[2; 1][..], &[0; 7], &[0xff, 0xfe]].concat()), Safetensors, "JSON");
}

#[test]
fn safetensors_deeply_nested_header() {
    let text = format!("{{\"__metadata__\":{}", "[".repeat(1_000_000));
    assert_error!(open_single(&safetensors(&text, &[])), Safetensors, "JSON");
}

#[test]
fn safetensors_header_entry_without_shape() {
    let text = r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#;
    assert_error!(open_single(&safetensors(text, &[0; 4])), Safetensors, "'w'", "shape");
}

#[test]
fn safetensors_git_lfs_pointer() {
    assert_error!(open_single(b"version https://git-lfs.github.com/spec/v1\n"), Safetensors, "Git LFS");
}

#[test]
fn safetensors_overlapping_tensors() {
    let entries = [entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12)];
    assert_error!(open_header(&entries, 12), Safetensors, "'a' and 'b' overlap", "byte 4");
}

#[test]
fn safetensors_hole_between_tensors() {
    let entries = [entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[1]", 12, 16)];
    assert_error!(open_header(&entries, 16), Safetensors, "4 bytes between 'a' and 'b'");
}

#[test]
fn safetensors_bytes_after_the_last_tensor() {
    assert_error!(open_header(&[entry("a", "F32", "[1]", 0, 4)], 7), Safetensors, "3 bytes after 'a'");
}

#[test]
fn safetensors_offsets_out_of_order() {
    assert_error!(open_header(&[entry("a", "F32", "[1]", 4, 0)], 4), Safetensors, "'a'", "begins at byte 4");
}

#[test]
fn safetensors_wrong_size_for_dtype() {
    let entries = [entry("a", "F16", "[2,3]", 0, 24)];
    assert_error!(open_header(&entries, 24), Safetensors, "'a'", "[2, 3] of F16 takes 12 bytes", "found 24");
}

#[test]
fn safetensors_shape_that_overflows() {
    let entries = [entry("a", "F32", "[4294967296,4294967296,4]", 0, 4)];
    assert_error!(open_header(&entries, 4), Safetensors, "'a'", "has no size");
}

#[test]
fn safetensors_half_a_byte() {
    assert_error!(open_header(&[entry("a", "F4", "[3]", 0, 2)], 2), Safetensors, "'a'", "F4", "has no size");
}

#[test]
fn safetensors_negative_dimension() {
    assert_error!(open_header(&[entry("a", "F32", "[-1]", 0, 4)], 4), Safetensors, "'a'", "-1");
}

#[test]
fn safetensors_unknown_dtype() {
    assert_error!(open_header(&[entry("a", "F7", "[1]", 0, 4)], 4), Safetensors, "'a'", "F7");
}

#[test]
fn safetensors_name_twice_in_one_header() {
    let entries = [entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 4, 8)];
    assert_error!(open_header(&entries, 8), Safetensors, "'a'", "already");
}

/// A file with one f32 called `name`.
fn shard(name: &str) -> Vec<u8> {
    safetensors(&header(&[entry(name, "F32", "[1]", 0, 4)]), &name.repeat(4).as_bytes()[..4])
}

#[test]
fn safetensors_shards_with_an_index() {
    let index = br#"{"metadata":{"total_size":8},"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("model.safetensors.index.json", index),
        ("1.safetensors", &shard("b")),
        ("2.safetensors", &shard("a")),
        ("unrelated.safetensors", b"not one"),
    ];
    let dir = folder(&files);
    let source = SafetensorsFolder::open(dir.path()).unwrap();
    assert_eq!(source.names(), ["b", "a"]);
    assert_eq!(source.tensor("a").unwrap().bytes[..], *b"aaaa");
    assert_eq!(source.files().count(), 2);
}

#[test]
fn safetensors_shards_without_an_index() {
    let dir = folder(&[("y.safetensors", &shard("a")), ("x.safetensors", &shard("b")), ("z.txt", b"")]);
    let source = SafetensorsFolder::open(dir.path()).unwrap();
    assert_eq!(source.names(), ["b", "a"]);
}

#[test]
fn safetensors_tensor_in_two_shards() {
    let dir = folder(&[("1.safetensors", &shard("a")), ("2.safetensors", &shard("a"))]);
    let message = "1.safetensors already";
    assert_error!(SafetensorsFolder::open(dir.path()), Safetensors, "2.safetensors", "'a'", message);
}

fn open_index(index: &str) -> wgllama::Result<SafetensorsFolder> {
    let files: [(&str, &[u8]); 2] =
        [("model.safetensors.index.json", index.as_bytes()), ("1.safetensors", &shard("a"))];
    SafetensorsFolder::open(folder(&files).path())
}

#[test]
fn safetensors_index_names_missing_shards() {
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"3.safetensors"}}"#;
    assert_error!(open_index(index), Config, "'weight_map'", "2 file(s)", "2.safetensors, 3.safetensors");
}

#[test]
fn safetensors_index_names_missing_tensors() {
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"1.safetensors"}}"#;
    assert_error!(open_index(index), Config, "2 tensor(s)", "'b' in 1.safetensors, 'c' in 1.safetensors");
}

#[test]
fn safetensors_index_leads_out_of_the_folder() {
    for name in ["../1.safetensors", "/etc/passwd", "..", "", "sub/1", "C:1", r"..\\1", "."] {
        let index = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        assert_error!(open_index(&index), Config, "plain file names", &name.replace(r"\\", r"\"));
    }
}

#[test]
fn safetensors_index_is_damaged() {
    assert_error!(open_index("{"), Config, "index.json", "not valid JSON");
    assert_error!(open_index("[]"), Config, "index.json", "expected a JSON object");
    assert_error!(open_index("{}"), Config, "'weight_map'", "found nothing");
    assert_error!(open_index(r#"{"weight_map":7}"#), Config, "'weight_map'", "expected an object");
    assert_error!(open_index(r#"{"weight_map":{"a":1}}"#), Config, "'weight_map'", "names");
}

fn safetensors_from_memory(bytes: &[u8]) -> wgllama::Result<SafetensorsFolder> {
    SafetensorsFolder::from_files("test", vec![MappedFile::from_bytes("test", bytes.to_vec())])
}

#[test]
fn safetensors_truncated_anywhere_is_an_error() {
    let bytes = valid_safetensors();
    for end in 0..bytes.len() {
        assert_error!(safetensors_from_memory(&bytes[..end]), Safetensors, "test");
    }
}

// ---- GGUF

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

struct Tensor {
    name: &'static str,
    /// Innermost first, as in the file.
    dims: Vec<u64>,
    number: u32,
    /// In place of the next free place.
    offset: Option<u64>,
    bytes: usize,
}

/// Writes a file, right or wrong.
struct Writer {
    magic: [u8; 4],
    version: u32,
    /// In place of the true counts.
    tensor_count: Option<u64>,
    value_count: Option<u64>,
    values: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
    alignment: usize,
}

fn writer() -> Writer {
    Writer {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        value_count: None,
        values: Vec::new(),
        tensors: Vec::new(),
        alignment: 32,
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((elements.len() as u64).to_le_bytes());
    bytes.extend(elements.concat());
    bytes
}

impl Writer {
    fn value(mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) -> Self {
        self.values.push([&string(key)[..], &kind.to_le_bytes(), value.as_ref()].concat());
        self
    }

    fn tensor(mut self, name: &'static str, dims: &[u64], number: u32, bytes: usize) -> Self {
        self.tensors.push(Tensor { name, dims: dims.into(), number, offset: None, bytes });
        self
    }

    fn offset(mut self, offset: u64) -> Self {
        self.tensors.last_mut().unwrap().offset = Some(offset);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.value_count.unwrap_or(self.values.len() as u64).to_le_bytes());
        out.extend(self.values.concat());
        let mut free = 0;
        for tensor in &self.tensors {
            out.extend(string(tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.number.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(free as u64).to_le_bytes());
            free = (free + tensor.bytes).next_multiple_of(self.alignment);
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        for (number, tensor) in self.tensors.iter().enumerate() {
            out.resize(out.len() + tensor.bytes, number as u8 + 1);
            if number + 1 < self.tensors.len() {
                out.resize(out.len().next_multiple_of(self.alignment), 0);
            }
        }
        out
    }

    fn open(&self) -> wgllama::Result<Gguf> {
        Gguf::from_bytes("test.gguf", self.bytes())
    }
}

/// Values of every type and tensors of every format.
fn valid_gguf() -> Writer {
    let words = array(STRING, &[string("a"), string("bc"), string("")]);
    let inner = array(U8, &[vec![1], vec![2]]);
    writer()
        .value("u8", U8, [200])
        .value("i8", 1, [0xff])
        .value("u16", 2, 60000u16.to_le_bytes())
        .value("i16", 3, (-2i16).to_le_bytes())
        .value("u32", U32, 4_000_000_000u32.to_le_bytes())
        .value("i32", I32, (-3i32).to_le_bytes())
        .value("f32", F32, 1e-5f32.to_le_bytes())
        .value("nan", F32, f32::NAN.to_le_bytes())
        .value("bool", BOOL, [1])
        .value("string", STRING, string("Grüße"))
        .value("u64", 10, u64::MAX.to_le_bytes())
        .value("i64", 11, (-4i64).to_le_bytes())
        .value("f64", 12, 0.5f64.to_le_bytes())
        .value("strings", ARRAY, words)
        .value("i32s", ARRAY, array(I32, &[1i32.to_le_bytes().into(), (-1i32).to_le_bytes().into()]))
        .value("f32s", ARRAY, array(F32, &[0.25f32.to_le_bytes().into()]))
        .value("bools", ARRAY, array(BOOL, &[vec![1], vec![0]]))
        .value("odd bools", ARRAY, array(BOOL, &[vec![2]]))
        .value("nested", ARRAY, array(ARRAY, &[inner.clone(), inner]))
        .tensor("f32", &[3, 2], 0, 24)
        .tensor("f16", &[5], 1, 10)
        .tensor("q4_0", &[64, 2], 2, 72)
        .tensor("q4_1", &[32, 1, 1, 2], 3, 40)
        .tensor("q8_0", &[32], 8, 34)
        .tensor("ids", &[3], 26, 12)
        .tensor("bf16", &[2], 30, 4)
}

#[test]
fn gguf_round_trip_of_tensors() {
    for version in [2, 3] {
        let mut writer = valid_gguf();
        writer.version = version;
        let file = writer.open().unwrap();
        assert_eq!((file.version(), file.path()), (version, Path::new("test.gguf")));
        assert_eq!(file.names(), ["f32", "f16", "q4_0", "q4_1", "q8_0", "bf16"]);
        let q4_1 = file.tensor("q4_1").unwrap();
        assert_eq!((q4_1.format, q4_1.shape), (WeightFormat::Q4_1, vec![2, 1, 1, 32]));
        for (number, tensor) in writer.tensors.iter().enumerate() {
            if let Some(found) = file.tensor(tensor.name) {
                assert_eq!(found.bytes, vec![number as u8 + 1; tensor.bytes], "{}", tensor.name);
                assert_eq!(found.format.name(), tensor.name);
            }
        }
    }
}

#[test]
fn gguf_round_trip_of_values() {
    let file = valid_gguf().open().unwrap();
    assert_eq!(file.keys().count(), 19);
    assert_eq!(file.get("i8"), Some(&Value::I8(-1)));
    assert_eq!(file.get("i64"), Some(&Value::I64(-4)));
    assert_eq!(file.str("string").unwrap(), "Grüße");
    assert_eq!((file.u64("u8").unwrap(), file.u64("u16").unwrap()), (200, 60000));
    assert_eq!((file.u64("u32").unwrap(), file.u64("u64").unwrap()), (4_000_000_000, u64::MAX));
    assert_eq!(
        (file.f32("f32").unwrap(), file.f32("f64").unwrap(), file.f32("i32").unwrap()),
        (1e-5, 0.5, -3.0)
    );
    assert_eq!(file.opt_bool("bool").unwrap(), Some(true));
    assert_eq!(file.strings("strings").unwrap().unwrap(), ["a", "bc", ""]);
    assert_eq!(file.i32s("i32s").unwrap().unwrap(), [1, -1]);
    assert_eq!(file.f32s("f32s").unwrap().unwrap(), [0.25]);
    assert_eq!(file.bools("bools").unwrap().unwrap(), [true, false]);
    assert!(file.opt_u64("no").unwrap().is_none() && file.opt_f32("no").unwrap().is_none());
    assert!(file.opt_str("no").unwrap().is_none() && file.strings("no").unwrap().is_none());
}

#[test]
fn gguf_values_of_the_wrong_type() {
    let file = valid_gguf().open().unwrap();
    assert_error!(file.u64("no"), Config, "test.gguf", "'no'", "non-negative integer", "found nothing");
    assert_error!(file.u64("i32"), Config, "'i32'", "non-negative integer", "found -3");
    assert_error!(file.u64("string"), Config, "'string'", "found \"Grüße\"");
    assert_error!(file.str("f32"), Config, "'f32'", "expected a string", "found 0.00001");
    assert_error!(file.str("no"), Config, "'no'", "expected a string", "found nothing");
    assert_error!(file.f32("nan"), Config, "'nan'", "finite number", "found NaN");
    assert_error!(file.f32("no"), Config, "'no'", "found nothing");
    assert_error!(file.opt_bool("u8"), Config, "'u8'", "expected a bool", "found 200");
    assert_error!(file.strings("i32s"), Config, "'i32s'", "array of strings", "I32 as element 0");
    assert_error!(file.i32s("i32"), Config, "'i32'", "array", "found -3");
    assert_error!(file.opt_str("nested"), Config, "'nested'", "found an array of 2 Array");
    assert_error!(file.bools("odd bools"), Gguf, "odd bools", "expected a bool", "found 2");
}

#[test]
fn gguf_integer_tensors_are_left_out() {
    let file = valid_gguf().open().unwrap();
    assert!(file.tensor("ids").is_none() && file.tensor("no").is_none());
    assert!(file.format_problem("f32").is_none() && file.format_problem("no").is_none());
    assert_error!(
        Err::<(), _>(file.format_problem("ids").unwrap()),
        UnsupportedFormat,
        "'ids'",
        "I32",
        "Q8_0"
    );
}

#[test]
fn gguf_without_tensors_or_values() {
    let file = writer().open().unwrap();
    assert_eq!((file.names().len(), file.keys().count()), (0, 0));
}

#[test]
fn gguf_scalar_tensor() {
    let file = writer().tensor("scale", &[], 0, 4).open().unwrap();
    assert_eq!(file.tensor("scale").unwrap().len(), 1);
}

#[test]
fn gguf_other_alignment() {
    let mut writer = writer().value("general.alignment", U32, 64u32.to_le_bytes());
    writer.alignment = 64;
    let writer = writer.tensor("a", &[1], 0, 4).tensor("b", &[2], 0, 8);
    assert_eq!(writer.open().unwrap().tensor("b").unwrap().bytes[..], [2; 8]);
}

/// A small vocabulary; `scores` of them have a score.
fn vocab_writer(scores: usize, bos: i32) -> Writer {
    let tokens = array(STRING, &[string("<s>"), string("a")]);
    writer()
        .value("tokenizer.ggml.model", STRING, string("llama"))
        .value("tokenizer.ggml.tokens", ARRAY, tokens)
        .value("tokenizer.ggml.scores", ARRAY, array(F32, &vec![(-1f32).to_le_bytes().into(); scores]))
        .value("tokenizer.ggml.token_type", ARRAY, array(I32, &vec![1i32.to_le_bytes().into(); 2]))
        .value("tokenizer.ggml.bos_token_id", I32, bos.to_le_bytes())
        .value("tokenizer.ggml.eos_token_id", U32, 1u32.to_le_bytes())
        .value("tokenizer.ggml.add_bos_token", BOOL, [0])
        .value("tokenizer.chat_template", STRING, string("{{ x }}"))
}

#[test]
fn gguf_vocab() {
    let vocab = vocab_writer(2, 0).open().unwrap().vocab().unwrap();
    assert_eq!(
        (vocab.model.as_str(), vocab.pre, vocab.tokens),
        ("llama", None, vec!["<s>".into(), "a".into()])
    );
    assert_eq!((vocab.scores, vocab.token_types, vocab.merges.len()), (vec![-1.0; 2], vec![1; 2], 0));
    assert_eq!((vocab.bos, vocab.eos, vocab.eot, vocab.unk), (Some(0), Some(1), None, None));
    assert_eq!((vocab.add_bos, vocab.add_eos, vocab.add_space_prefix), (Some(false), None, None));
    assert_eq!(vocab.chat_template.as_deref(), Some("{{ x }}"));
}

#[test]
fn gguf_vocab_ids_past_the_end_mean_none() {
    for id in [-1, 2, i32::MAX] {
        assert_eq!(vocab_writer(2, id).open().unwrap().vocab().unwrap().bos, None);
    }
}

#[test]
fn gguf_vocab_that_is_missing_or_uneven() {
    assert_error!(valid_gguf().open().unwrap().vocab(), Config, "'tokenizer.ggml.tokens'", "found nothing");
    let uneven = vocab_writer(3, 0).open().unwrap();
    assert_error!(uneven.vocab(), Config, "'tokenizer.ggml.scores'", "expected 2", "found 3");
}

#[test]
fn gguf_missing_file() {
    assert_error!(Gguf::open(Path::new("absent.gguf")), Io, "absent.gguf");
}

#[test]
fn gguf_empty_file() {
    let dir = folder(&[("model.gguf", b"")]);
    assert_error!(Gguf::open(&dir.path().join("model.gguf")), Gguf, "model.gguf", "truncated: the magic");
}

#[test]
fn gguf_bad_magic() {
    let mut writer = valid_gguf();
    writer.magic = *b"GGML";
    assert_error!(writer.open(), Gguf, "at byte 0", "bad magic", "'GGML'");
}

#[test]
fn gguf_git_lfs_pointer() {
    let bytes = b"version https://git-lfs.github.com/spec/v1\n".to_vec();
    assert_error!(Gguf::from_bytes("test.gguf", bytes), Gguf, "test.gguf", "Git LFS");
}

#[test]
fn gguf_unknown_version() {
    for version in [0, 1, 4] {
        let mut writer = valid_gguf();
        writer.version = version;
        assert_error!(writer.open(), Gguf, "at byte 4", &format!("version {version}"), "supported: 2, 3");
    }
}

#[test]
fn gguf_big_endian() {
    let mut writer = valid_gguf();
    writer.version = 3u32.swap_bytes();
    assert_error!(writer.open(), Gguf, "at byte 4", "big-endian");
}

#[test]
fn gguf_absurd_tensor_count() {
    for count in [1000, u64::MAX] {
        let mut writer = valid_gguf();
        writer.tensor_count = Some(count);
        assert_error!(writer.open(), Gguf, "at byte 8", "number of tensors", &count.to_string());
    }
}

#[test]
fn gguf_absurd_value_count() {
    for count in [1000, u64::MAX] {
        let mut writer = valid_gguf();
        writer.value_count = Some(count);
        assert_error!(writer.open(), Gguf, "at byte 16", "metadata entries", &count.to_string());
    }
}

#[test]
fn gguf_key_past_the_end() {
    let mut writer = writer();
    writer.values.push([&u64::MAX.to_le_bytes()[..], &[0; 40]].concat());
    assert_error!(writer.open(), Gguf, "at byte 24", "metadata key", &u64::MAX.to_string());
}

#[test]
fn gguf_string_past_the_end() {
    for len in [1, 1 << 40, u64::MAX] {
        let writer = writer().value("general.name", STRING, len.to_le_bytes());
        assert_error!(writer.open(), Gguf, "general.name", &format!("found {len}"));
    }
}

#[test]
fn gguf_string_that_is_not_utf8() {
    let writer = writer().value("general.name", STRING, [1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    assert_error!(writer.open(), Gguf, "general.name is not UTF-8");
}

#[test]
fn gguf_array_past_the_end() {
    for kind in [U8, F32, STRING, ARRAY, 12] {
        for len in [100u64, 1 << 61, u64::MAX] {
            let value = [&kind.to_le_bytes()[..], &len.to_le_bytes(), &[0; 50]].concat();
            let writer = writer().value("some.list", ARRAY, value);
            assert_error!(writer.open(), Gguf, "some.list", &format!("found {len}"));
        }
    }
}

#[test]
fn gguf_deeply_nested_arrays() {
    let nested = |depth| (0..depth).fold(array(U8, &[vec![1]]), |inner, _| array(ARRAY, &[inner]));
    assert!(writer().value("some.list", ARRAY, nested(3)).open().is_ok());
    for depth in [4, 3000] {
        let writer = writer().value("some.list", ARRAY, nested(depth));
        assert_error!(writer.open(), Gguf, "some.list", "nested more than 4 deep");
    }
}

#[test]
fn gguf_bad_value_type() {
    for kind in [13, u32::MAX] {
        let value = writer().value("some.key", kind, [0; 8]);
        assert_error!(value.open(), Gguf, "some.key", &format!("unknown type {kind}"));
        let element = writer().value("some.list", ARRAY, array(kind, &[vec![0; 8]]));
        assert_error!(element.open(), Gguf, "some.list", &format!("unknown type {kind}"));
    }
}

#[test]
fn gguf_bool_that_is_none() {
    assert_error!(
        writer().value("some.key", BOOL, [2]).open(),
        Gguf,
        "some.key",
        "expected a bool",
        "found 2"
    );
}

#[test]
fn gguf_duplicate_key() {
    let writer = writer().value("some.key", U8, [1]).value("some.key", U8, [1]);
    assert_error!(writer.open(), Gguf, "'some.key' is there twice");
}

#[test]
fn gguf_bad_alignment() {
    for alignment in [0u32, 3, 33, u32::MAX] {
        let writer = writer().value("general.alignment", U32, alignment.to_le_bytes());
        assert_error!(writer.open(), Gguf, "general.alignment", "power of two", &alignment.to_string());
    }
    let text = writer().value("general.alignment", STRING, string("32"));
    assert_error!(text.open(), Gguf, "general.alignment", "found \"32\"");
    let huge = writer().value("general.alignment", 10, (1u64 << 63).to_le_bytes()).tensor("a", &[1], 0, 4);
    assert_error!(huge.open(), Gguf, "'a'", "past the end");
}

#[test]
fn gguf_tensor_past_the_end() {
    for offset in [32, 1 << 40, u64::MAX - 31] {
        let writer = writer().tensor("a", &[8], 0, 32).tensor("far", &[9], 0, 0).offset(offset);
        let error = writer.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("'far'"), "{error}");
        assert!(matches!(writer.open(), Err(Error::Gguf { .. })));
    }
}

#[test]
fn gguf_misaligned_tensor() {
    let writer = writer().tensor("a", &[8], 0, 64).offset(4);
    assert_error!(writer.open(), Gguf, "'a'", "offset 4", "multiple of 32");
}

#[test]
fn gguf_overlapping_tensors() {
    let writer = writer().tensor("a", &[16], 0, 64).tensor("b", &[8], 0, 32).offset(32);
    assert_error!(writer.open(), Gguf, "'a' and 'b' overlap");
}

#[test]
fn gguf_unknown_tensor_type() {
    for number in [4, 31, 42, u32::MAX] {
        let writer = writer().tensor("a", &[256], number, 256);
        assert_error!(writer.open(), UnsupportedFormat, "'a'", &format!("GGML type {number}"), "Q4_0");
    }
}

#[test]
fn gguf_unsupported_tensor_types() {
    let types = [(9, "Q8_1"), (15, "Q8_K"), (16, "IQ2_XXS"), (19, "IQ1_S"), (21, "IQ3_S"), (29, "IQ1_M")];
    for (number, name) in types.into_iter().chain([(28, "F64"), (34, "TQ1_0"), (40, "NVFP4"), (41, "Q1_0")]) {
        let writer = writer().tensor("a", &[256], number, 256);
        assert_error!(writer.open(), UnsupportedFormat, "'a'", &format!("stored as {name},"), "Q4_0");
    }
}

#[test]
fn gguf_zero_dimension() {
    assert_error!(writer().tensor("a", &[4, 0], 0, 0).open(), Gguf, "'a'", "dimension of 0");
}

#[test]
fn gguf_too_many_dimensions() {
    assert_error!(writer().tensor("a", &[1; 5], 0, 4).open(), Gguf, "'a'", "at most 4", "found 5");
    let mut writer = writer().tensor("a", &[1; 4], 0, 4);
    writer.tensors[0].dims = vec![1; 1000];
    assert_error!(writer.open(), Gguf, "'a'", "found 1000");
}

#[test]
fn gguf_shape_that_overflows() {
    for dims in [&[1 << 32, 1 << 32][..], &[1 << 62, 2], &[1 << 62], &[u64::MAX]] {
        assert_error!(writer().tensor("a", dims, 0, 4).open(), Gguf, "'a'");
    }
}

#[test]
fn gguf_row_that_is_no_whole_number_of_blocks() {
    let writer = writer().tensor("a", &[48, 2], 2, 54);
    assert_error!(writer.open(), Gguf, "'a'", "rows of 48", "Q4_0", "32");
}

#[test]
fn gguf_duplicate_tensor() {
    let writer = writer().tensor("a", &[1], 0, 4).tensor("a", &[1], 0, 4);
    assert_error!(writer.open(), Gguf, "'a' is there twice");
}

#[test]
fn gguf_part_of_a_split_model() {
    let writer = writer().value("split.count", 2, 3u16.to_le_bytes());
    assert_error!(writer.open(), Config, "'split.count'", "one of 3");
}

/// Reads all that there is to read; only a panic is a failure.
fn exercise(file: wgllama::Result<Gguf>) {
    let Ok(file) = file else { return };
    for key in file.keys() {
        _ = (file.u64(key), file.f32(key), file.str(key), file.opt_bool(key));
        _ = (file.strings(key), file.f32s(key), file.i32s(key), file.bools(key));
    }
    for name in file.names() {
        let tensor = file.tensor(name).unwrap();
        let blocks = tensor.len() / tensor.format.block_len();
        assert_eq!(tensor.bytes.len(), blocks * tensor.format.block_bytes());
    }
    _ = file.vocab();
}

#[test]
fn gguf_truncated_anywhere_does_not_panic() {
    let bytes = valid_gguf().bytes();
    for end in 0..bytes.len() {
        let file = Gguf::from_bytes("test.gguf", bytes[..end].to_vec());
        assert!(matches!(file, Err(Error::Gguf { .. })), "{end}: {file:?}");
    }
    let bytes = vocab_writer(2, 0).bytes();
    (0..bytes.len()).for_each(|end| exercise(Gguf::from_bytes("test.gguf", bytes[..end].to_vec())));
}

// ---- JSON

fn json(text: &str) -> JsonFile {
    JsonFile::from_str("config.json", text).unwrap()
}

#[test]
fn json_round_trip() {
    let text = r#"{"n": 3, "zero": 0, "x": 1e-5, "s": "text", "no": null, "yes": true, "list": ["a", "b"],
        "numbers": [1, 2.5], "rope": {"type": "yarn", "inner": {"factor": 4}}}"#;
    let dir = folder(&[("config.json", text.as_bytes())]);
    let path = dir.path().join("config.json");
    let file = JsonFile::open(&path).unwrap();
    assert_eq!((file.path(), file.keys().count()), (path.as_path(), 9));
    assert_eq!((file.usize("n").unwrap(), file.opt_u64("zero").unwrap()), (3, Some(0)));
    assert_eq!((file.f64("x").unwrap(), file.f64("n").unwrap()), (1e-5, 3.0));
    assert_eq!((file.str("s").unwrap(), file.opt_bool("yes").unwrap()), ("text", Some(true)));
    assert_eq!(file.opt_strs("list").unwrap().unwrap(), ["a", "b"]);
    assert_eq!(file.opt_f64s("numbers").unwrap().unwrap(), [1.0, 2.5]);
    for key in ["no", "absent"] {
        assert!(file.value(key).is_none() && file.opt_usize(key).unwrap().is_none());
        assert!(file.opt_str(key).unwrap().is_none() && file.object(key).unwrap().is_none());
    }
    let rope = file.object("rope").unwrap().unwrap();
    assert_eq!(rope.str("type").unwrap(), "yarn");
    assert_eq!(rope.object("inner").unwrap().unwrap().usize("factor").unwrap(), 4);
}

#[test]
fn json_sizes_that_are_none() {
    for (text, found) in [("0", "0"), ("-4", "-4"), ("2.5", "2.5"), ("4.0", "4.0"), ("\"4\"", "\"4\"")] {
        let file = json(&format!(r#"{{"n": {text}}}"#));
        let found = format!("found {found}");
        assert_error!(file.usize("n"), Config, "config.json", "'n'", "expected a positive integer", &found);
        assert_error!(file.opt_usize("n"), Config, "expected a positive integer", &found);
    }
}

#[test]
fn json_values_of_the_wrong_type() {
    let long = "x".repeat(1000);
    let file = json(&format!(r#"{{"s": "{long}", "o": {{"n": -1}}, "l": [1]}}"#));
    assert_error!(file.f64("s"), Config, "'s'", "expected a number", "found \"xxx", "...");
    assert!(file.f64("s").unwrap_err().to_string().len() < 200);
    assert_error!(file.str("l"), Config, "'l'", "expected a string", "found a list of 1");
    assert_error!(file.opt_strs("l"), Config, "'l'", "expected a list of strings");
    assert_error!(file.opt_f64s("o"), Config, "'o'", "expected a list of numbers", "found an object");
    assert_error!(file.opt_bool("o"), Config, "'o'", "expected true or false", "found an object");
    assert_error!(file.object("l"), Config, "'l'", "expected an object");
    assert_error!(file.opt_u64("o"), Config, "'o'", "non-negative integer");
    assert_error!(file.object("o").unwrap().unwrap().usize("n"), Config, "'o.n'", "found -1");
    for key in ["absent", "none"] {
        assert_error!(file.usize(key), Config, key, "found nothing");
        assert_error!(file.str(key), Config, key, "found nothing");
        assert_error!(file.f64(key), Config, key, "found nothing");
    }
}

#[test]
fn json_that_is_damaged() {
    assert_error!(
        JsonFile::from_str("config.json", "{\"a\":"),
        Config,
        "config.json",
        "not valid JSON",
        "line 1"
    );
    assert_error!(JsonFile::from_str("config.json", "[1]"), Config, "config.json", "expected a JSON object");
    assert_error!(JsonFile::from_str("config.json", &"[".repeat(1_000_000)), Config, "not valid JSON");
    assert_error!(JsonFile::open(Path::new("absent.json")), Io, "absent.json");
}

#[test]
fn json_that_is_too_long() {
    let dir = folder(&[("config.json", &vec![b' '; (32 << 20) + 1])]);
    assert_error!(JsonFile::open(&dir.path().join("config.json")), Config, "config.json", "at most");
}

// ---- random damage

/// `bytes` with some of them replaced, and sometimes cut.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    // Bytes that matter most: small numbers, the extremes, and what JSON is made of.
    let byte = prop_oneof![0..14u8, Just(0xff), Just(0x7f), Just(0x80), any::<u8>(), Just(b'"'), Just(b'9')];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), byte), 0..8);
    (changes, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(move |(changes, cut)| {
        let mut bytes = bytes.clone();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf_damage_does_not_panic(bytes in damaged(valid_gguf().bytes())) {
        exercise(Gguf::from_bytes("test.gguf", bytes));
    }

    #[test]
    fn gguf_damaged_vocab_does_not_panic(bytes in damaged(vocab_writer(2, 0).bytes())) {
        exercise(Gguf::from_bytes("test.gguf", bytes));
    }

    #[test]
    fn gguf_noise_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let magic = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
        let len = magic.len().min(bytes.len());
        bytes[..len].copy_from_slice(&magic[..len]);
        exercise(Gguf::from_bytes("test.gguf", bytes));
    }

    #[test]
    fn safetensors_damage_does_not_panic(bytes in damaged(valid_safetensors())) {
        if let Ok(folder) = safetensors_from_memory(&bytes) {
            for name in folder.names() {
                let tensor = folder.tensor(name).unwrap();
                prop_assert_eq!(tensor.bytes.len(), tensor.len() * tensor.format.block_bytes());
            }
        }
    }

    #[test]
    fn json_noise_does_not_panic(text in "[\\[\\]{}\":,0-9a-e\\-. ]{0,60}") {
        _ = JsonFile::from_str("config.json", &text);
    }
}

// ---- files that others wrote

#[test]
fn shared_models_open() {
    let Some(shared) = support::shared() else { return };
    let models = shared.join("models");
    let stories = Gguf::open(&models.join("stories260K-f32.gguf")).unwrap();
    let vocab = stories.vocab().unwrap();
    assert_eq!(vocab.tokens.len(), 512);
    assert_eq!(stories.str("general.architecture").unwrap(), "llama");
    assert_eq!(stories.u64("llama.block_count").unwrap(), 5);
    let embedding = stories.tensor("token_embd.weight").unwrap();
    assert_eq!((embedding.format, embedding.shape), (WeightFormat::F32, vec![512, 64]));
    // The same weights as the Hugging Face folder holds.
    let folder = SafetensorsFolder::open(&models.join("stories260K")).unwrap();
    let same = folder.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((same.shape, same.bytes), (vec![512, 64], embedding.bytes));
}

#[test]
fn shared_families_open() {
    let Some(shared) = support::shared() else { return };
    let mut found = 0;
    for family in std::fs::read_dir(shared.join("models/families")).unwrap() {
        let dir = family.unwrap().path();
        assert!(SafetensorsFolder::open(&dir).unwrap().names().len() > 10);
        let config = JsonFile::open(&dir.join("config.json")).unwrap();
        assert!(config.usize("hidden_size").unwrap() > 0 && !config.str("model_type").unwrap().is_empty());
        found += 1;
    }
    assert!(found > 0);
}

#[test]
fn shared_quants_open() {
    let Some(shared) = support::shared() else { return };
    let mut opened = Vec::new();
    for file in std::fs::read_dir(shared.join("models/quants")).unwrap() {
        let path = file.unwrap().path();
        let Some(name) = path.file_stem().and_then(|n| n.to_str()?.strip_prefix("tiny-")) else { continue };
        let format = Gguf::open(&path).unwrap().tensor("blk.0.ffn_up.weight").unwrap().format;
        // A mixture such as Q4_K_M holds that type for the most part.
        let main = name.trim_end_matches("_M");
        assert!(format.name().eq_ignore_ascii_case(main), "{name} holds {format}");
        opened.push(name.to_string());
    }
    opened.sort();
    let expected = "BF16 F16 F32 IQ4_NL IQ4_XS Q2_K Q3_K_M Q4_0 Q4_1 Q4_K_M Q5_0 Q5_1 Q5_K_M Q6_K Q8_0";
    assert_eq!(opened.join(" "), expected);
}

// ---- writing GGUF

/// A file quantised by `quantize`, read again.
fn quantised(from: &Gguf, quantize: wgllama::model::Quantize) -> Gguf {
    let mut bytes = Vec::new();
    quantize.write(from, &mut bytes, Path::new("out.gguf"), |_, _| ()).unwrap();
    Gguf::from_bytes("out.gguf", bytes).unwrap()
}

fn to(format: WeightFormat) -> wgllama::model::Quantize {
    wgllama::model::Quantize {
        format: Some(format),
        embedding: None,
        output: Some(format),
        requantize: false,
    }
}

/// Formats that leave an encoder no choice come out as another engine writes them, byte by byte;
/// the others are at most a tenth further off the weights.
#[test]
fn shared_quants_come_out_as_others_write_them() {
    let Some(shared) = support::shared() else { return };
    let open = |name: &str| Gguf::open(&shared.join(format!("models/quants/tiny-{name}.gguf"))).unwrap();
    let plain = open("F32");
    for (name, format) in [
        ("Q8_0", WeightFormat::Q8_0),
        ("Q4_0", WeightFormat::Q4_0),
        ("Q4_1", WeightFormat::Q4_1),
        ("Q5_0", WeightFormat::Q5_0),
        ("Q5_1", WeightFormat::Q5_1),
        ("Q2_K", WeightFormat::Q2_K),
        ("Q3_K_M", WeightFormat::Q3_K),
        ("Q4_K_M", WeightFormat::Q4_K),
        ("Q5_K_M", WeightFormat::Q5_K),
        ("Q6_K", WeightFormat::Q6_K),
        ("IQ4_NL", WeightFormat::IQ4_NL),
        ("IQ4_XS", WeightFormat::IQ4_XS),
    ] {
        let (ours, theirs) = (quantised(&plain, to(format)), open(name));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        assert_eq!(ours.vocab().unwrap().tokens, plain.vocab().unwrap().tokens);
        let (mut off, mut their_off) = (0.0, 0.0);
        for tensor in plain.names() {
            let [x, a, b] = [&plain, &ours, &theirs].map(|file| file.tensor(tensor).unwrap());
            // Mixtures keep some tensors better.
            if a.format != b.format || a.format == WeightFormat::F32 {
                continue;
            }
            if matches!(a.format.block_len(), 32) && format != WeightFormat::IQ4_NL {
                assert!(a == b, "{name}: {tensor}");
            }
            let [x, a, b] = [x, a, b].map(|t| {
                let mut values = vec![0.0; t.len()];
                wgllama::quant::decode(t.format, &t.bytes, &mut values);
                values
            });
            let error = |v: &[f32]| v.iter().zip(&x).map(|(v, x)| (v - x).powi(2)).sum::<f32>();
            off += error(&a);
            their_off += error(&b);
        }
        assert!(their_off > 0.0 && off <= their_off * 1.1, "{name}: {off} against {their_off}");
    }
}

#[test]
fn quantising_keeps_what_it_must() {
    let floats = |n: usize| (0..n).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect::<Vec<u8>>();
    let mut from = GgufWriter::default();
    from.u32("some.key", 7);
    let tensors = [
        ("token_embd.weight", vec![4, 256]),
        ("blk.0.ffn_up.weight", vec![4, 256]),
        ("blk.0.ffn_down.weight", vec![4, 96]),
        ("blk.0.attn_norm.weight", vec![256]),
        ("blk.0.attn_q.bias", vec![2, 32]),
    ];
    for (name, shape) in &tensors {
        from.tensor(name, shape, WeightFormat::F32);
    }
    let mut bytes = Vec::new();
    let write = |i: usize, out: &mut Vec<u8>| {
        out.extend(floats(tensors[i].1.iter().product()));
        Ok(())
    };
    from.write(Path::new("in.gguf"), &mut bytes, write).unwrap();
    let from = Gguf::from_bytes("in.gguf", bytes).unwrap();
    let quantize = wgllama::model::Quantize { output: None, ..to(WeightFormat::Q4_K) };
    let file = quantised(&from, quantize);
    let format = |name: &str| file.tensor(name).unwrap().format;
    // Tied, so that the embedding makes the logits; 96 columns are no superblock.
    assert_eq!(format("token_embd.weight"), WeightFormat::Q6_K);
    assert_eq!(format("blk.0.ffn_up.weight"), WeightFormat::Q4_K);
    assert_eq!(format("blk.0.ffn_down.weight"), WeightFormat::Q5_0);
    for name in ["blk.0.attn_norm.weight", "blk.0.attn_q.bias"] {
        assert_eq!(file.tensor(name), from.tensor(name));
    }
    assert_eq!((file.u64("some.key").unwrap(), file.u64("general.file_type").unwrap()), (7, 14));
    let numbers = writer().tensor("positions", &[8], 26, 32).open().unwrap();
    let lost = to(WeightFormat::Q8_0).write(&numbers, &mut Vec::new(), Path::new("out.gguf"), |_, _| ());
    assert_error!(lost, UnsupportedFormat, "positions", "I32");
    let eight = to(WeightFormat::F8_E4M3).write(&from, &mut Vec::new(), Path::new("out.gguf"), |_, _| ());
    assert_error!(eight, UnsupportedFormat, "token_embd.weight", "f8_e4m3 in GGUF", "Q4_K");
    let again = to(WeightFormat::Q8_0).write(&file, &mut Vec::new(), Path::new("out.gguf"), |_, _| ());
    assert_error!(again, InvalidOption, "token_embd.weight", "q6_k", "--requantize");
    let again = quantised(&file, wgllama::model::Quantize { requantize: true, ..to(WeightFormat::Q8_0) });
    assert_eq!(again.tensor("blk.0.ffn_up.weight").unwrap().format, WeightFormat::Q8_0);
}
