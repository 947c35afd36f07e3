//! Opening and loading models, right and wrong ones, and what a session says to a request that it
//! can't serve. The models are variations of the project's own tiny one.

mod support;

use std::cell::RefCell;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use support::tiny::{Tiny, VOCAB};
use support::{assert_close, gpu, greedy, load, max_error, session};
use tempfile::TempDir;
use wgllama::caps::AdapterKind;
use wgllama::graph::Batch;
use wgllama::graph::reference::Reference;
use wgllama::host::TensorSource;
use wgllama::model::Quantize;
use wgllama::model::kv::bytes_per_token;
use wgllama::{
    Context, ContextOptions, Error, Finish, KvFormat, LoadOptions, Lora, Model, ModelFiles, Phase, Sampling,
    Session, SessionOptions, WeightFormat, quant,
};

/// Fails unless `error` is of the variant and its message has all of `parts`.
macro_rules! assert_error {
    ($result:expr, $variant:ident, $($part:expr),+) => {{
        let error = $result.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::$variant { .. }), "wrong variant: {error:?}");
        let message = error.to_string();
        $({
            let part: &str = $part;
            assert!(message.contains(part), "'{part}' is not in: {message}");
        })+
    }};
}

// ---- the tiny model and variations of it

fn tiny() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    folder
}

/// The tiny model with another configuration.
fn with_config(edit: impl FnOnce(&mut Map<String, Value>)) -> TempDir {
    let folder = tiny();
    edit_config(&folder, edit);
    folder
}

fn edit_config(folder: &TempDir, edit: impl FnOnce(&mut Map<String, Value>)) {
    edit_json(&folder.path().join("config.json"), edit);
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// The tiny model with one key of its configuration set.
fn with_key(key: &str, value: Value) -> TempDir {
    with_config(|config| {
        config.insert(key.to_string(), value);
    })
}

fn open(folder: &TempDir) -> wgllama::Result<ModelFiles> {
    ModelFiles::open(folder.path())
}

/// A tensor as it is stored.
#[derive(Clone)]
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn read_tensors(folder: &Path) -> Vec<Stored> {
    read_tensors_of(&folder.join("model.safetensors"))
}

fn read_tensors_of(file: &Path) -> Vec<Stored> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView<'_>)| Stored {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    let mut all: Vec<_> = file.tensors().into_iter().map(stored).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn write_tensors(path: &Path, tensors: &[Stored]) {
    let view = |t: &Stored| TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map(|_| ());
    tensors.iter().for_each(|t| view(t).unwrap());
    let views = tensors
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The tiny model with other tensors.
fn with_tensors(edit: impl FnOnce(&mut Vec<Stored>)) -> TempDir {
    let folder = tiny();
    let mut tensors = read_tensors(folder.path());
    edit(&mut tensors);
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

// ---- the configuration

#[test]
fn config_json_is_missing() {
    let folder = tiny();
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_error!(open(&folder), Io, "config.json");
}

#[test]
fn model_is_missing() {
    let folder = tiny();
    assert_error!(ModelFiles::open(&folder.path().join("nothing-here.gguf")), Io, "nothing-here.gguf");
}

#[test]
fn config_without_a_required_key() {
    let required = [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ];
    for key in required {
        let folder = with_config(|config| {
            config.remove(key).unwrap();
        });
        assert_error!(open(&folder), Config, "config.json", &format!("'{key}'"), "found nothing");
    }
}

#[test]
fn config_may_leave_out_what_has_a_default() {
    // 48 / 6 is not the default model's head_dim: the shapes have to follow from the heads.
    let folder = tempfile::tempdir().unwrap();
    Tiny { head_dim: 8, kv_heads: 6, biases: false, ..Tiny::default() }.write(folder.path()).unwrap();
    let path = folder.path().join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let optional = [
        "hidden_act",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
    ];
    for key in optional {
        config.remove(key).unwrap();
    }
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let files = open(&folder).unwrap();
    assert_eq!((files.config().num_key_value_heads, files.config().head_dim), (6, 8));
}

const SIZES: [&str; 7] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
];

#[test]
fn config_sizes_that_are_none() {
    for key in SIZES {
        for value in [json!(0), json!(-8), json!(1.5), json!("8")] {
            let found = format!("found {value}");
            assert_error!(open(&with_key(key, value)), Config, "config.json", &format!("'{key}'"), &found);
        }
    }
}

/// 10^15 of anything is refused by its key, and 16 million of it, which is not, by the tensors:
/// nothing may be allocated by what only the configuration says.
#[test]
fn config_sizes_that_are_absurd() {
    for key in SIZES {
        let folder = with_key(key, json!(1_000_000_000_000_000u64));
        assert_error!(open(&folder), Config, &format!("'{key}'"), "1000000000000000");
    }
    for key in ["hidden_size", "intermediate_size", "vocab_size"] {
        assert_error!(open(&with_key(key, json!(1 << 24))), Tensors, "16777216");
    }
    assert_error!(open(&with_key("num_hidden_layers", json!(4096))), Tensors, "model.layers.4095.");
    let folder = with_config(|config| {
        config.insert("num_attention_heads".to_string(), json!(1 << 24));
        config.insert("num_key_value_heads".to_string(), json!(1 << 24));
    });
    assert_error!(open(&folder), Tensors, "167772160");
}

/// A few bytes can ask for millions of tensors: there is no graph of those, which would take gigabytes.
#[test]
fn config_of_far_more_tensors_than_there_are() {
    let experts = with_config(|config| {
        for (key, value) in
            [("num_hidden_layers", 4096), ("num_local_experts", 512), ("num_experts_per_tok", 2)]
        {
            config.insert(key.to_string(), json!(value));
        }
        config.insert("model_type".to_string(), json!("mixtral"));
    });
    assert_error!(open(&experts), Tensors, "asks for at least 6307840 tensors, found");
    let heads = with_config(|config| {
        for key in ["num_attention_heads", "num_key_value_heads"] {
            config.insert(key.to_string(), json!(1 << 24));
        }
        config.insert("model_type".to_string(), json!("stablelm"));
        config.insert("qk_layernorm".to_string(), json!(true));
        config.insert("layer_norm_eps".to_string(), json!(1e-5));
    });
    assert_error!(open(&heads), Tensors, "asks for at least 67108872 tensors, found");
    let numbers = [
        ("llama.block_count", 4096),
        ("llama.expert_count", 512),
        ("llama.expert_used_count", 2),
        ("llama.embedding_length", 4096),
        ("llama.feed_forward_length", 4096),
        ("llama.attention.head_count", 32),
    ];
    assert_error!(
        open_gguf(&[LLAMA], &numbers),
        Tensors,
        "asks for experts of 105553116266496 weights, found 0"
    );
    let dense = with_config(|config| {
        config.insert("model_type".to_string(), json!("qwen3_moe"));
        config.insert("num_experts".to_string(), json!(4));
        config.insert("mlp_only_layers".to_string(), json!([0, 1, 1]));
    });
    assert_error!(open(&dense), Config, "mlp_only_layers", "at most 2", "found 3");
}

#[test]
fn config_heads_that_do_not_divide() {
    let folder = with_config(|config| {
        config.remove("head_dim");
        config.insert("num_attention_heads".to_string(), json!(7));
    });
    assert_error!(open(&folder), Config, "'num_attention_heads'", "7", "48");
    assert_error!(
        open(&with_key("num_key_value_heads", json!(4))),
        Config,
        "'num_key_value_heads'",
        "6",
        "4"
    );
}

#[test]
fn config_head_dim_that_no_kernel_takes() {
    for value in [9, 258] {
        let found = format!("found {value}");
        assert_error!(open(&with_key("head_dim", json!(value))), Config, "'head_dim'", "even", &found);
    }
}

#[test]
fn config_numbers_that_make_no_sense() {
    for key in ["rms_norm_eps", "rope_theta"] {
        for value in [json!(0), json!(-1.0), json!("small")] {
            assert_error!(open(&with_key(key, value)), Config, "config.json", &format!("'{key}'"));
        }
    }
}

#[test]
fn config_of_an_unsupported_activation() {
    assert_error!(
        open(&with_key("hidden_act", json!("relu2"))),
        Config,
        "'hidden_act'",
        "'relu2'",
        "silu, gelu"
    );
}

#[test]
fn config_of_an_unsupported_model_type() {
    let folder = with_key("model_type", json!("mambo"));
    assert_error!(open(&folder), UnsupportedModel, "'mambo'", "supported: llama");
}

#[test]
fn config_of_an_unsupported_rope_scaling() {
    let rope = |kind_key: &str| json!({ kind_key: "spiral", "factor": 2.0, "rope_theta": 10000.0 });
    for (key, kind_key) in
        [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
    {
        assert_error!(open(&with_key(key, rope(kind_key))), Config, key, "'spiral'", "supported:");
    }
    // Transformers 4 writes null where there is none.
    open(&with_key("rope_scaling", Value::Null)).unwrap();
}

// ---- GGUF

/// A GGUF file with strings, numbers and the tokenizer's list of tokens, and without any tensor.
fn gguf(strings: &[(&str, &str)], numbers: &[(&str, u32)], tokens: &[&str]) -> TempDir {
    const U32: u32 = 4;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((strings.len() as u64 + numbers.len() as u64 + 1).to_le_bytes());
    for (key, value) in strings {
        bytes.extend([string(key), STRING.to_le_bytes().to_vec(), string(value)].concat());
    }
    for (key, value) in numbers {
        bytes.extend([string(key), U32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    }
    bytes.extend(string("tokenizer.ggml.tokens"));
    bytes.extend(ARRAY.to_le_bytes());
    bytes.extend(STRING.to_le_bytes());
    bytes.extend((tokens.len() as u64).to_le_bytes());
    tokens.iter().for_each(|token| bytes.extend(string(token)));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.gguf"), bytes).unwrap();
    folder
}

const GGUF_SIZES: [(&str, u32); 5] = [
    ("llama.embedding_length", 8),
    ("llama.feed_forward_length", 8),
    ("llama.block_count", 1),
    ("llama.attention.head_count", 1),
    ("llama.context_length", 64),
];

fn open_gguf(strings: &[(&str, &str)], numbers: &[(&str, u32)]) -> wgllama::Result<ModelFiles> {
    ModelFiles::open(&gguf(strings, numbers, &["a", "b", "c"]).path().join("model.gguf"))
}

const LLAMA: (&str, &str) = ("general.architecture", "llama");

#[test]
fn gguf_of_an_unsupported_architecture() {
    let strings = [("general.architecture", "mambo")];
    assert_error!(open_gguf(&strings, &GGUF_SIZES), UnsupportedModel, "'mambo'", "gemma3", "llama");
}

#[test]
fn gguf_without_an_architecture() {
    assert_error!(open_gguf(&[], &GGUF_SIZES), Config, "general.architecture");
}

#[test]
fn gguf_without_a_required_key() {
    for (key, _) in &GGUF_SIZES[..4] {
        let others: Vec<_> = GGUF_SIZES.iter().filter(|(k, _)| k != key).copied().collect();
        assert_error!(open_gguf(&[LLAMA], &others), Config, "model.gguf", &format!("'{key}'"));
    }
}

#[test]
fn gguf_sizes_that_are_zero() {
    for (key, _) in GGUF_SIZES {
        let edited = GGUF_SIZES.map(|(k, n)| (k, if k == key { 0 } else { n }));
        assert_error!(open_gguf(&[LLAMA], &edited), Config, "model.gguf", "found 0");
    }
}

#[test]
fn gguf_of_an_unsupported_rope_scaling() {
    let strings = [LLAMA, ("llama.rope.scaling.type", "spiral")];
    assert_error!(open_gguf(&strings, &GGUF_SIZES), Config, "llama.rope.scaling.type", "'spiral'");
}

/// The embedding as a single number, which GGUF allows.
#[test]
fn gguf_with_an_embedding_of_no_dimensions() {
    let path = gguf(&[LLAMA], &GGUF_SIZES, &["a", "b", "c"]).keep().join("model.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8..16].copy_from_slice(&1u64.to_le_bytes());
    let name = b"token_embd.weight";
    bytes.extend([&(name.len() as u64).to_le_bytes()[..], name].concat());
    // No dimensions, type F32, offset 0.
    bytes.extend([0; 4 + 4 + 8]);
    bytes.resize(bytes.len().next_multiple_of(32) + 4, 0);
    std::fs::write(&path, bytes).unwrap();
    let result = ModelFiles::open(&path);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert_error!(result, Tensors, "token_embd.weight: expected shape [3, 8], found []");
}

#[test]
fn biases_that_the_configuration_does_not_ask_for() {
    let folder = with_key("attention_bias", json!(false));
    assert_error!(open(&folder), Tensors, "layers.0.self_attn.q_proj.bias", "asks for no such bias");
}

/// A row of more than four megabytes, the piece in which weights are uploaded.
#[test]
fn rows_longer_than_a_piece_of_the_upload() {
    let Some(gpu) = gpu() else { return };
    let shape =
        Tiny { intermediate: 1_100_000, hidden: 4, heads: 1, kv_heads: 1, layers: 1, ..Tiny::default() };
    let folder = tempfile::tempdir().unwrap();
    shape.write(folder.path()).unwrap();
    let model = load(&gpu, folder.path());
    session(&model, KvFormat::F32, 64, 1).prefill(&[1]).unwrap();
}

/// A GGUF file's tensors are listed by the names that they have in it.
#[test]
fn gguf_without_tensors() {
    assert_error!(
        open_gguf(&[LLAMA], &GGUF_SIZES),
        Tensors,
        "token_embd.weight: missing, expected shape [3, 8]",
        "blk.0.attn_q.weight: missing",
        "blk.0.ffn_down.weight: missing, expected shape [8, 8]",
        "output_norm.weight: missing, expected shape [8]"
    );
}

// ---- tensors

#[test]
fn tensors_that_do_not_fit_are_all_listed() {
    let folder = with_tensors(|tensors| {
        let gone = ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"];
        tensors.retain(|t| !gone.contains(&t.name.as_str()));
        find(tensors, "model.layers.0.self_attn.k_proj.weight").shape = vec![48, 20];
        let bias = find(tensors, "model.layers.1.self_attn.q_proj.bias");
        bias.shape = vec![59];
        bias.bytes.truncate(59 * 4);
    });
    let error = open(&folder).err().unwrap();
    let Error::Tensors { problems, .. } = &error else { panic!("wrong variant: {error:?}") };
    assert_eq!(problems.len(), 4, "{error}");
    let expected = [
        "model.norm.weight: missing, expected shape [48]",
        "model.layers.1.mlp.up_proj.weight: missing, expected shape [100, 48]",
        "model.layers.0.self_attn.k_proj.weight: expected shape [20, 48], found [48, 20]",
        "model.layers.1.self_attn.q_proj.bias: expected shape [60], found [59]",
    ];
    for line in expected {
        assert!(error.to_string().contains(line), "'{line}' is not in: {error}");
    }
}

#[test]
fn tensor_of_an_unsupported_type() {
    for (dtype, size) in [(Dtype::F64, 8), (Dtype::I8, 1)] {
        let name = "model.layers.0.mlp.down_proj.weight";
        let folder = with_tensors(|tensors| {
            let tensor = find(tensors, name);
            tensor.dtype = dtype;
            tensor.bytes = vec![0; 48 * 100 * size];
        });
        assert_error!(open(&folder), UnsupportedFormat, name, &dtype.to_string(), "F32, F16, BF16");
    }
}

#[test]
fn folder_without_safetensors() {
    let folder = tiny();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_error!(open(&folder), Io, "model.safetensors", folder.path().to_str().unwrap());
}

#[test]
fn safetensors_file_in_place_of_its_folder() {
    let folder = tiny();
    let path = folder.path().join("model.safetensors");
    assert_error!(ModelFiles::open(&path), InvalidOption, "model.safetensors", "folder", "config.json");
}

/// Cuts the tiny model's file into two and writes the index that tells which holds what.
fn sharded() -> TempDir {
    let folder = tiny();
    let tensors = read_tensors(folder.path());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut weight_map = Map::new();
    for (number, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        write_tensors(&folder.path().join(&file), half);
        weight_map.extend(half.iter().map(|t| (t.name.clone(), Value::from(file.as_str()))));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    let path = folder.path().join("model.safetensors.index.json");
    std::fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
    folder
}

// ---- models on the device

const IDS: [u32; 9] = [256, 65, 32, 116, 105, 110, 121, 200, 7];

/// The logits of all of `IDS`.
fn logits(gpu: &Context, folder: &Path) -> Vec<f32> {
    session(&load(gpu, folder), KvFormat::F32, 64, 64).prefill_all(&IDS).unwrap()
}

fn reference(files: &ModelFiles) -> Vec<f32> {
    let mut reference = Reference::new(files.graph(), files, KvFormat::F32).unwrap();
    reference.logits(&Batch::sequence(&IDS, 0, 0).with_all_outputs()).unwrap()
}

#[test]
fn shards_equal_the_single_file() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(logits(&gpu, sharded().path()), logits(&gpu, tiny().path()));
}

#[test]
fn keys_of_transformers_5_mean_what_those_of_4_do() {
    let Some(gpu) = gpu() else { return };
    let four = with_key("rope_theta", json!(500.0));
    let five = with_config(|config| {
        config.remove("rope_theta");
        let rope = json!({ "rope_theta": 500.0, "rope_type": "default" });
        config.insert("rope_parameters".to_string(), rope);
    });
    let found = logits(&gpu, five.path());
    assert_eq!(found, logits(&gpu, four.path()));
    // The base matters at all.
    assert!(max_error(&found, &logits(&gpu, tiny().path())).0 > 1e-2);
}

/// The tiny model with its matrices and vectors stored as `format`.
fn stored_as(format: WeightFormat, dtype: Dtype) -> TempDir {
    with_tensors(|tensors| {
        for tensor in tensors {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes);
            tensor.bytes = quant::encode(format, &values);
            tensor.dtype = dtype;
        }
    })
}

#[test]
fn half_precision_copies_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (format, dtype) in [(WeightFormat::BF16, Dtype::BF16), (WeightFormat::F16, Dtype::F16)] {
        let folder = stored_as(format, dtype);
        let files = open(&folder).unwrap();
        assert_eq!(files.formats(&files.graph().weights[0]).unwrap(), [format]);
        let found = logits(&gpu, folder.path());
        assert_close(&format.to_string(), &found, &reference(&files), 1e-4);
        // The copy is a rounded one, not the original.
        assert!(max_error(&found, &reference(&open(&tiny()).unwrap())).0 > 1e-4);
    }
}

/// A model whose tokenizer can't be had still takes ids; what is wrong is told to who asks for it.
#[test]
fn model_without_a_working_tokenizer_takes_ids() {
    let Some(gpu) = gpu() else { return };
    let expected = greedy(&mut session(&load(&gpu, tiny().path()), KvFormat::F32, 64, 64), &IDS, 4);
    let broken: [Option<&[u8]>; 3] = [None, Some(b"{ \"version\": "), Some(b"{ \"model\": {} }")];
    for content in broken {
        let folder = tiny();
        let path = folder.path().join("tokenizer.json");
        std::fs::remove_file(&path).unwrap();
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let model = load(&gpu, folder.path());
        assert_error!(model.tokenizer(), Tokenizer, "tokenizer.json");
        let mut session = session(&model, KvFormat::F32, 64, 64);
        assert_error!(session.generate("A", &Sampling::default()), Tokenizer, "tokenizer.json");
        assert_eq!(greedy(&mut session, &IDS, 4), expected);
    }
}

#[test]
fn progress_rises_to_the_total() {
    let Some(gpu) = gpu() else { return };
    let heard = RefCell::new(Vec::new());
    let progress = |done, total| heard.borrow_mut().push((done, total));
    let folder = tiny();
    Model::load(&gpu, folder.path(), &LoadOptions { progress: Some(&progress), ..Default::default() })
        .unwrap();
    let heard = heard.into_inner();
    let &(done, total) = heard.last().unwrap();
    assert!(total > 0 && done == total, "{done} of {total}");
    assert!(heard.iter().all(|h| h.1 == total) && heard.is_sorted(), "{heard:?}");
}

/// Quantised at load is the same as stored so: of the values that the encoder keeps.
#[test]
fn weights_are_quantised_while_they_are_loaded() {
    let Some(gpu) = gpu() else { return };
    let shape = Tiny { hidden: 64, intermediate: 96, heads: 4, kv_heads: 2, head_dim: 16, ..Tiny::default() };
    let (plain, rounded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shape.write(plain.path()).unwrap();
    shape.write(rounded.path()).unwrap();
    let file = rounded.path().join("model.safetensors");
    let mut tensors = read_tensors(rounded.path());
    for tensor in tensors.iter_mut().filter(|t| t.shape.len() == 2) {
        let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes);
        let row = tensor.shape[1];
        for row in values.chunks_exact_mut(row) {
            let bytes = wgllama::quant::encode(WeightFormat::Q8_0, row);
            wgllama::quant::decode(WeightFormat::Q8_0, &bytes, row);
        }
        tensor.bytes = bytemuck::cast_slice(&values).to_vec();
    }
    write_tensors(&file, &tensors);
    let with = |folder: &TempDir, quantize| {
        let options = LoadOptions { quantize, ..Default::default() };
        let model = Model::load(&gpu, folder.path(), &options).unwrap();
        let logits = session(&model, KvFormat::F32, 64, 64).prefill_all(&IDS).unwrap();
        (model.weights().bytes(), logits)
    };
    let (expected, quantised) = (with(&rounded, None), with(&plain, Some(WeightFormat::Q8_0)));
    support::assert_close("q8_0", &quantised.1, &expected.1, 1e-4);
    assert!(quantised.0 * 3 < expected.0, "{} of {} bytes", quantised.0, expected.0);
    // Rows of 64 and 96 are no superblocks: five bits instead, and not far off.
    let five = with(&plain, Some(WeightFormat::Q4_K));
    assert!(five.0 > quantised.0 / 2 && five.0 < quantised.0, "{} bytes", five.0);
    assert!(support::max_error(&five.1, &with(&plain, None).1).0 < 0.5);

    let mut tensors = read_tensors(plain.path());
    find(&mut tensors, "model.layers.0.mlp.up_proj.weight").bytes[..4]
        .copy_from_slice(&f32::NAN.to_le_bytes());
    write_tensors(&plain.path().join("model.safetensors"), &tensors);
    let options = LoadOptions { quantize: Some(WeightFormat::Q4_0), ..Default::default() };
    let error = Model::load(&gpu, plain.path(), &options);
    assert_error!(error, Tensors, "up_proj.weight", "expected finite weights", "NaN");
}

/// A folder as a GGUF file, and what was left out.
fn converted(folder: &Path, quantize: Quantize) -> (TempDir, std::path::PathBuf, Vec<String>) {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let mut file = std::fs::File::create(&path).unwrap();
    let files = ModelFiles::open(folder).unwrap();
    let left = quantize.convert(&files, &mut file, &path, |_, _| ()).unwrap();
    (out, path, left)
}

/// What is converted to GGUF gives the very logits of the folder: rows that turn together are put
/// side by side, in biases, too.
#[test]
fn converted_folders_give_the_same_logits() {
    let Some(gpu) = gpu() else { return };
    let tied = tempfile::tempdir().unwrap();
    Tiny { tied: true, biases: false, head_dim: 12, ..Tiny::default() }.write(tied.path()).unwrap();
    let partly = with_config(|config| {
        config.insert("partial_rotary_factor".into(), json!(0.4));
        config.insert("rope_theta".into(), json!(500.0));
        config.insert("rms_norm_eps".into(), json!(1e-3));
    });
    let extra = with_tensors(|tensors| {
        let shape = vec![5];
        tensors.push(Stored { name: "rotary.inv_freq".into(), dtype: Dtype::F32, shape, bytes: vec![0; 20] });
    });
    for (folder, left) in [
        (tiny(), None),
        (tied, None),
        (partly, None),
        (stored_as(WeightFormat::BF16, Dtype::BF16), None),
        (extra, Some("rotary.inv_freq")),
    ] {
        let (_out, path, found) = converted(folder.path(), Quantize::default());
        assert_eq!(found, left.into_iter().collect::<Vec<_>>());
        assert_eq!(ModelFiles::open(&path).unwrap().config(), open(&folder).unwrap().config());
        assert_eq!(logits(&gpu, &path), logits(&gpu, folder.path()));
    }

    let format = Some(WeightFormat::Q8_0);
    let (_out, path, _) = converted(tiny().path(), Quantize { format, ..Quantize::default() });
    let options = LoadOptions { quantize: format, ..Default::default() };
    let model = Model::load(&gpu, tiny().path(), &options).unwrap();
    let expected = session(&model, KvFormat::F32, 64, 64).prefill_all(&IDS).unwrap();
    assert_eq!(logits(&gpu, &path), expected);

    let folder = stored_as(WeightFormat::F8_E5M2, Dtype::F8_E5M2);
    let error =
        Quantize::default().convert(&open(&folder).unwrap(), &mut Vec::new(), Path::new("x.gguf"), |_, _| ());
    assert_error!(error, UnsupportedFormat, "f8_e5m2 in GGUF");
}

/// The same model with q, k and v in one tensor, and gate and up in another.
fn joined(folder: &TempDir) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder.path().join(name), out.path().join(name)).unwrap();
    }
    let mut tensors = read_tensors(folder.path());
    for layer in 0..5 {
        for (parts, whole) in [
            (&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..], "self_attn.qkv_proj"),
            (&["mlp.gate_proj", "mlp.up_proj"][..], "mlp.gate_up_proj"),
        ] {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let mut all = find(&mut tensors, &name(parts[0])).clone();
            for part in &parts[1..] {
                let other = find(&mut tensors, &name(part));
                all.shape[0] += other.shape[0];
                all.bytes.extend(&other.bytes);
            }
            tensors.retain(|t| parts.iter().all(|part| t.name != name(part)));
            tensors.push(Stored { name: name(whole), ..all });
        }
    }
    write_tensors(&out.path().join("model.safetensors"), &tensors);
    out
}

/// The tiny model without biases, in five layers, as one of another family.
fn of_type(model_type: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny { biases: false, layers: 5, ..Tiny::default() }.write(folder.path()).unwrap();
    edit_config(&folder, |config| {
        config.insert("model_type".into(), json!(model_type));
    });
    folder
}

/// Other families, whose rows GGUF has in other orders, and scalings of rotations. Divisors of
/// frequencies come back rounded to f32.
#[test]
fn converted_families_give_the_same_logits() {
    let Some(gpu) = gpu() else { return };
    let qwen2 = with_tensors(|tensors| {
        let own = |name: &str| {
            !name.ends_with("bias") || ["q_proj", "k_proj", "v_proj"].iter().any(|p| name.contains(p))
        };
        tensors.retain(|t| own(&t.name));
    });
    edit_config(&qwen2, |config| {
        config.insert("model_type".into(), json!("qwen2"));
    });
    let granite = of_type("granite");
    edit_config(&granite, |config| {
        for (key, value) in [
            ("embedding_multiplier", 6.0),
            ("attention_multiplier", 0.2),
            ("residual_multiplier", 0.5),
            ("logits_scaling", 4.0),
        ] {
            config.insert(key.into(), json!(value));
        }
    });
    let phi3 = joined(&of_type("phi3"));
    let olmo2 = of_type("olmo2");
    let mut tensors = read_tensors(olmo2.path());
    for tensor in &mut tensors {
        tensor.name = tensor.name.replace("input_layernorm", "post_feedforward_layernorm");
    }
    for (layer, (norm, len)) in (0..5).flat_map(|layer| [(layer, ("q_norm", 60)), (layer, ("k_norm", 20))]) {
        let bytes = (0..len).flat_map(|i| (0.5 + i as f32 / 64.0).to_le_bytes()).collect();
        let name = format!("model.layers.{layer}.self_attn.{norm}.weight");
        tensors.push(Stored { name, dtype: Dtype::F32, shape: vec![len], bytes });
    }
    write_tensors(&olmo2.path().join("model.safetensors"), &tensors);
    let scaled = |rope: Value| with_key("rope_parameters", rope);
    let divisors: Vec<f64> = (0..5).map(|i| 1.0 + f64::from(i)).collect();
    for (folder, architecture) in [
        (of_type("mistral"), "llama"),
        (granite, "granite"),
        (phi3, "phi3"),
        (olmo2, "olmo2"),
        (of_type("smollm3"), "smollm3"),
        (qwen2, "qwen2"),
        (scaled(json!({ "rope_type": "linear", "factor": 4.0 })), "llama"),
        (
            scaled(json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 })),
            "llama",
        ),
        (
            scaled(json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            })),
            "llama",
        ),
        (
            scaled(json!({
                "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors.iter().map(|d| 2.0 * d).collect::<Vec<_>>(),
                "original_max_position_embeddings": 16,
            })),
            "llama",
        ),
    ] {
        let (_out, path, left) = converted(folder.path(), Quantize::default());
        assert!(left.is_empty(), "{left:?}");
        let files = ModelFiles::open(&path).unwrap();
        assert_eq!(files.gguf().unwrap().str("general.architecture").unwrap(), architecture);
        let (found, expected) = (logits(&gpu, &path), logits(&gpu, folder.path()));
        support::assert_close(&path.display().to_string(), &found, &expected, 1e-5);
    }
    let refused = |folder: TempDir, key: &str| {
        let files = open(&folder).unwrap();
        let error = Quantize::default().convert(&files, &mut Vec::new(), Path::new("x.gguf"), |_, _| ());
        assert_error!(error, Config, key, "GGUF has no key");
    };
    refused(scaled(json!({ "rope_type": "dynamic", "factor": 4.0 })), "rope_type");
    let windows = of_type("mistral");
    edit_config(&windows, |config| {
        config.insert("sliding_window".into(), json!(16));
    });
    refused(windows, "sliding_window");
    let every_other = of_type("smollm3");
    edit_config(&every_other, |config| {
        config.insert("no_rope_layers".into(), json!([1, 0, 1, 0, 1]));
    });
    refused(every_other, "no_rope_layers");
}

/// Tiny models of other families, with a tokenizer put beside them: norms less one, experts in tensors of
/// their own, norms with offsets.
#[test]
fn converted_models_of_all_families_give_the_same_logits() {
    let Some(gpu) = gpu() else { return };
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families");
    let mut folders = vec![own.join("starcoder2")];
    if let Some(shared) = support::shared() {
        folders.extend(
            ["gemma", "gemma2", "gemma3", "mixtral"].map(|name| shared.join("models/families").join(name)),
        );
    }
    let ids: Vec<u32> = (0..60).map(|i| 3 + i * 31 % 100).collect();
    for folder in folders {
        let with_tokenizer = tiny();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(folder.join(name), with_tokenizer.path().join(name)).unwrap();
        }
        edit_config(&with_tokenizer, |config| {
            // Windows that GGUF can't say of this family are as long as its texts.
            if config["model_type"] == "starcoder2" {
                config.insert("sliding_window".into(), json!(null));
            }
        });
        // A token a byte is what these models have room for.
        let tokenizer = with_tokenizer.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
        json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 256);
        json["added_tokens"] = json!([]);
        std::fs::write(&tokenizer, json.to_string()).unwrap();

        let (_out, path, left) = converted(with_tokenizer.path(), Quantize::default());
        assert!(left.is_empty(), "{left:?}");
        let all = |path: &Path| session(&load(&gpu, path), KvFormat::F32, 64, 64).prefill_all(&ids).unwrap();
        let (found, expected) = (all(&path), all(with_tokenizer.path()));
        support::assert_close(&folder.display().to_string(), &found, &expected, 1e-5);
    }
}

/// A PEFT folder with random factors of rank 3 for tensors of the given shapes, and alpha 6.
fn adapter(tensors: &[(&str, usize, usize)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none" });
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let mut stored = Vec::new();
    for (i, (name, rows, cols)) in tensors.iter().enumerate() {
        for (kind, shape) in [("A", vec![3, *cols]), ("B", vec![*rows, 3])] {
            let len: usize = shape.iter().product();
            let value = |j: usize| ((j * 37 + i * 11 + kind.len()) % 23) as f32 / 60.0 - 0.19;
            let bytes = (0..len).flat_map(|j| value(j).to_le_bytes()).collect();
            let name = format!("base_model.model.{name}.lora_{kind}.weight");
            stored.push(Stored { name, dtype: Dtype::F32, shape, bytes });
        }
    }
    write_tensors(&folder.path().join("adapter_model.safetensors"), &stored);
    folder
}

/// The model with the adapter's products added to its weights: 6 / 3 B A times `scale`.
fn merged(folder: &TempDir, adapter: &TempDir, scale: f32) -> TempDir {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let factors = read_tensors_of(&adapter.path().join("adapter_model.safetensors"));
    let mut tensors = read_tensors(folder.path());
    for tensor in &mut tensors {
        let module = tensor.name.trim_end_matches(".weight");
        let factor = |kind: &str| {
            let name = format!("base_model.model.{module}.lora_{kind}.weight");
            factors.iter().find(|t| t.name == name).map(|t| floats(&t.bytes))
        };
        let (Some(a), Some(b)) = (factor("A"), factor("B")) else { continue };
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let mut values = floats(&tensor.bytes);
        for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
            let sum: f32 = (0..3).map(|i| b[r * 3 + i] * a[i * cols + c]).sum();
            values[r * cols + c] += 2.0 * scale * sum;
        }
        tensor.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    let out = tiny();
    std::fs::copy(folder.path().join("config.json"), out.path().join("config.json")).unwrap();
    write_tensors(&out.path().join("model.safetensors"), &tensors);
    out
}

/// Adapters for tensors that are joined, halves that turn, and rows that alternate; on a folder, on the
/// GGUF file that it becomes, whose rows lie otherwise, and in Phi's joined tensors.
#[test]
fn adapters_equal_merged_weights() {
    let Some(gpu) = gpu() else { return };
    let plain = of_type("llama");
    let own = adapter(&[
        ("model.layers.0.self_attn.k_proj", 20, 48),
        ("model.layers.0.self_attn.q_proj", 60, 48),
        ("model.layers.1.mlp.up_proj", 100, 48),
        ("model.layers.1.self_attn.o_proj", 48, 60),
        ("lm_head", 258, 48),
    ]);
    let phi = joined(&of_type("phi3"));
    let for_phi = adapter(&[
        ("model.layers.0.self_attn.qkv_proj", 100, 48),
        ("model.layers.1.mlp.gate_up_proj", 200, 48),
    ]);
    for (folder, adapter) in [(&plain, &own), (&phi, &for_phi)] {
        let expected = logits(&gpu, merged(folder, adapter, 0.5).path());
        let lora = [Lora::open(adapter.path(), 0.5).unwrap()];
        let (_out, gguf, _) = converted(folder.path(), Quantize::default());
        for path in [folder.path(), &gguf] {
            let options = LoadOptions { adapters: &lora, ..LoadOptions::default() };
            let model = wgllama::Model::load(&gpu, path, &options).unwrap();
            let mut session = session(&model, KvFormat::F32, 64, 64);
            let found = session.prefill_all(&IDS).unwrap();
            session.truncate(0);
            session.prefill(&IDS).unwrap();
            let last = &expected[expected.len() - model.config().vocab_size..];
            assert_close("the last alone", session.logits().unwrap(), last, 1e-4);
            assert_close(&path.display().to_string(), &found, &expected, 1e-4);
            assert!(max_error(&found, &logits(&gpu, path)).0 > 0.05, "the adapter changes something");
        }
    }
}

#[test]
fn adapters_that_make_no_sense_are_refused() {
    let files = || ModelFiles::open(tiny().path()).unwrap();
    let q = ("model.layers.0.self_attn.q_proj", 60, 48);
    let apply = |folder: &TempDir| files().with_adapters(&[Lora::open(folder.path(), 1.0)?]);
    assert!(apply(&adapter(&[q])).is_ok());
    assert_error!(
        apply(&adapter(&[q, ("model.layers.9.self_attn.q_proj", 60, 48)])),
        Tensors,
        "layers.9",
        "no such"
    );
    assert_error!(
        apply(&adapter(&[("model.layers.0.self_attn.q_proj", 61, 48)])),
        Tensors,
        "60 by 48",
        "61 by 48"
    );
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("alpha_pattern", json!({ ".*q_proj": 3 })),
    ] {
        let folder = adapter(&[q]);
        edit_json(&folder.path().join("adapter_config.json"), |config| {
            config.insert(key.into(), value.clone());
        });
        assert_error!(apply(&folder), Config, "adapter_config.json", key.split('_').next().unwrap());
    }
    for (from, to) in [("lora_A", "lora_C"), ("lora_B", "lora_magnitude_vector")] {
        let folder = adapter(&[q]);
        let mut tensors = read_tensors_of(&folder.path().join("adapter_model.safetensors"));
        tensors.iter_mut().for_each(|t| t.name = t.name.replace(from, to));
        write_tensors(&folder.path().join("adapter_model.safetensors"), &tensors);
        assert_error!(apply(&folder), Tensors, "q_proj.lora_", "adapter_model.safetensors");
    }
    // Sizes that say nothing new, or would not fit into any memory if they were taken at their word.
    for (rank, cols) in [(3, 2), (1 << 60, 0)] {
        let folder = adapter(&[]);
        let factor = |kind: &str, shape: [usize; 2]| Stored {
            name: format!("base_model.model.{}.lora_{kind}.weight", q.0),
            dtype: Dtype::F32,
            bytes: vec![0; 4 * shape[0] * shape[1]],
            shape: shape.to_vec(),
        };
        let rows = if cols == 0 { 0 } else { 60 };
        let path = folder.path().join("adapter_model.safetensors");
        write_tensors(&path, &[factor("A", [rank, cols]), factor("B", [rows, rank])]);
        assert_error!(apply(&folder), Tensors, "lora_A", &format!("at most {cols} rows"));
    }
    let folder = adapter(&[q]);
    assert_error!(Lora::open(folder.path(), f32::NAN), InvalidOption, "lora", "NaN");
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert_error!(apply(&folder), Io, "adapter_model.safetensors");
}

/// A real folder becomes the file that other software made of it.
#[test]
fn stories_converted_equals_the_file_of_others() {
    let Some(shared) = support::shared() else { return };
    let (_out, path, _) = converted(&shared.join("models/stories260K"), Quantize::default());
    let found = ModelFiles::open(&path).unwrap();
    let expected = ModelFiles::open(&shared.join("models/stories260K-f32.gguf")).unwrap();
    assert_eq!(found.config(), expected.config());
    let sorted = |files: &ModelFiles| {
        let bytes = |name: &str| files.gguf().unwrap().tensor(name).unwrap().bytes.to_vec();
        let own = |(name, format, shape): (&str, _, _)| (name.to_string(), format, shape, bytes(name));
        let mut all: Vec<_> = files.tensors().into_iter().map(own).collect();
        all.sort();
        all
    };
    assert!(sorted(&found) == sorted(&expected));
    let vocab = |files: &ModelFiles| {
        let mut vocab = files.gguf().unwrap().vocab().unwrap();
        // Of a score only the order counts.
        let mut order: Vec<usize> = (0..vocab.tokens.len()).collect();
        order.sort_by(|a, b| vocab.scores[*b].total_cmp(&vocab.scores[*a]));
        vocab.scores = order.into_iter().map(|id| id as f32).collect();
        vocab
    };
    let (found, expected) = (vocab(&found), vocab(&expected));
    assert_eq!(found, expected);
}

// ---- AWQ and GPTQ

/// A model whose rows are whole groups of 128.
fn wide() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shape = Tiny { hidden: 256, intermediate: 384, heads: 8, head_dim: 16, ..Tiny::default() };
    Tiny { biases: false, layers: 1, ..shape }.write(folder.path()).unwrap();
    folder
}

fn add_to_config(folder: &TempDir, key: &str, value: Value) {
    let path = folder.path().join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.insert(key.to_string(), value);
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Sets four bits at `place` of word `at`.
fn set(words: &mut [u32], at: usize, place: usize, value: u32) {
    assert!(value < 16);
    words[at] |= value << (4 * place);
}

/// The model with its layers' matrices packed as `method` does, and the same in F32. Inputs belong to
/// groups in their order, or, as with "desc_act", in a random one.
fn packed_in_order(method: &str, group: usize, in_order: bool) -> (TempDir, TempDir) {
    let (folder, plain) = (wide(), wide());
    let mut random = ChaCha8Rng::seed_from_u64(group as u64);
    let mut decoded = read_tensors(plain.path());
    let mut tensors = Vec::new();
    for tensor in &mut decoded {
        if tensor.shape.len() != 2 || !tensor.name.contains("layers") {
            tensors.push(tensor.clone());
            continue;
        }
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let size = if group == 0 { cols } else { group };
        let groups = cols / size;
        let awq = method == "awq";
        let mut group_of: Vec<usize> = (0..cols).map(|k| k / size).collect();
        // Matrices with the same inputs have them in the same order.
        let mut order_random = ChaCha8Rng::seed_from_u64(cols as u64);
        for k in (1..cols).filter(|_| !in_order) {
            group_of.swap(k, order_random.next_u32() as usize % (k + 1));
        }
        let (mut qweight, mut qzeros) = (vec![0u32; rows * cols / 8], vec![0u32; groups * rows / 8]);
        let mut scales = vec![half::f16::ZERO; groups * rows];
        let mut values = vec![0.0f32; rows * cols];
        // AutoAWQ: bits 0 .. 3 hold output 0, bits 4 .. 7 output 2, and so on.
        let awq_place = |row: usize| [0, 4, 1, 5, 2, 6, 3, 7][row % 8];
        for row in 0..rows {
            for g in 0..groups {
                let scale = half::f16::from_f32((random.next_u32() % 1000 + 1) as f32 * 2e-5);
                let stored = random.next_u32() % 16;
                scales[g * rows + row] = scale;
                set(&mut qzeros, (g * rows + row) / 8, if awq { awq_place(row) } else { row % 8 }, stored);
                let zero = stored + u32::from(method == "gptq");
                for k in (0..cols).filter(|k| group_of[*k] == g) {
                    let q = random.next_u32() % 16;
                    if awq {
                        set(&mut qweight, (k * rows + row) / 8, awq_place(row), q);
                    } else {
                        set(&mut qweight, k / 8 * rows + row, k % 8, q);
                    }
                    values[row * cols + k] = scale.to_f32() * (q as f32 - zero as f32);
                }
            }
        }
        tensor.bytes = bytemuck::cast_slice(&values).to_vec();
        let stem = tensor.name.strip_suffix("weight").unwrap();
        let mut add = |name: &str, dtype, shape: &[usize], bytes: Vec<u8>| {
            tensors.push(Stored { name: format!("{stem}{name}"), dtype, shape: shape.to_vec(), bytes });
        };
        let bytes = |words: &[u32]| bytemuck::cast_slice(words).to_vec();
        let shape = if awq { [cols, rows / 8] } else { [cols / 8, rows] };
        add("qweight", Dtype::I32, &shape, bytes(&qweight));
        add("qzeros", Dtype::I32, &[groups, rows / 8], bytes(&qzeros));
        add("scales", Dtype::F16, &[groups, rows], scales.iter().flat_map(|s| s.to_le_bytes()).collect());
        if !awq {
            let order: Vec<u32> = group_of.iter().map(|g| *g as u32).collect();
            add("g_idx", Dtype::I32, &[cols], bytes(&order));
            // Tools write biases of zeros where there are none.
            add("bias", Dtype::F16, &[rows], vec![0; rows * 2]);
        }
    }
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    write_tensors(&plain.path().join("model.safetensors"), &decoded);
    let group_size = if group == 0 { json!(-1) } else { json!(group) };
    let about = match method {
        "awq" => json!({"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "GEMM"}),
        _ => {
            json!({"quant_method": "gptq", "bits": 4, "group_size": group_size, "checkpoint_format": method})
        }
    };
    add_to_config(&folder, "quantization_config", about);
    (folder, plain)
}

fn packed(method: &str, group: usize) -> (TempDir, TempDir) {
    packed_in_order(method, group, true)
}

/// Inputs are put in the order of their groups on the way to each matrix, or to all that share them.
#[test]
fn packed_weights_may_have_inputs_in_any_order() {
    let Some(gpu) = gpu() else { return };
    for (method, group, orders) in [("gptq", 32, 4), ("gptq_v2", 128, 3)] {
        let (folder, plain) = packed_in_order(method, group, false);
        let (files, expected) = (open(&folder).unwrap(), open(&plain).unwrap());
        let permuted = |files: &ModelFiles| {
            files.graph().nodes.iter().filter(|node| node.op.name() == "permute").count()
        };
        // Before q, k and v, before o (whose 128 inputs may be one group), before gate and up, before down.
        assert_eq!((permuted(&files), permuted(&expected)), (orders, 0));
        assert_close(method, &reference(&files), &reference(&expected), 1e-5);
        assert_close(method, &logits(&gpu, folder.path()), &reference(&expected), 1e-4);
        let greedy = |folder: &TempDir| {
            greedy(&mut session(&load(&gpu, folder.path()), KvFormat::F32, 64, 4), &IDS, 8)
        };
        assert_eq!(greedy(&folder), greedy(&plain));
        let quantize = Quantize { format: Some(WeightFormat::F32), requantize: true, ..Quantize::default() };
        let (_out, path, _) = converted(folder.path(), quantize);
        assert_eq!(logits(&gpu, &path), logits(&gpu, plain.path()));
    }
}

#[test]
fn packed_weights_are_what_they_stand_for() {
    let Some(gpu) = gpu() else { return };
    for method in ["awq", "gptq", "gptq_v2"] {
        for group in [32, 64, 128, 0] {
            let (folder, plain) = packed(method, group);
            let what = format!("{method}, {group}");
            let (files, expected) = (open(&folder).unwrap(), open(&plain).unwrap());
            for (name, format, _) in files.tensors().into_iter().filter(|t| !t.0.ends_with(".bias")) {
                assert_eq!(format == WeightFormat::U4, name.contains("proj"), "{what}: {name}");
                let decode = |files: &ModelFiles| {
                    let tensor = files.tensor(name).unwrap();
                    let mut values = vec![0.0; tensor.len()];
                    quant::decode(tensor.format, &tensor.bytes, &mut values);
                    (tensor.shape.clone(), values)
                };
                assert!(decode(&files) == decode(&expected), "{what}: {name}");
            }
            support::assert_close(&what, &logits(&gpu, folder.path()), &logits(&gpu, plain.path()), 1e-4);
        }
    }
    // On the way to GGUF, which has no such format, to one that it has.
    let (folder, plain) = packed("gptq", 64);
    let error =
        Quantize::default().convert(&open(&folder).unwrap(), &mut Vec::new(), Path::new("x.gguf"), |_, _| ());
    assert_error!(error, UnsupportedFormat, "u4 in GGUF");
    let (_out, path, left) = converted(
        folder.path(),
        Quantize { format: Some(WeightFormat::F32), requantize: true, ..Quantize::default() },
    );
    assert!(left.iter().all(|name| name.ends_with(".bias")), "{left:?}");
    assert_eq!(logits(&gpu, &path), logits(&gpu, plain.path()));
}

#[test]
fn packed_weights_that_make_no_sense() {
    let change = |method: &str, edit: &dyn Fn(&mut Vec<Stored>)| {
        let (folder, _) = packed(method, 64);
        let mut tensors = read_tensors(folder.path());
        edit(&mut tensors);
        write_tensors(&folder.path().join("model.safetensors"), &tensors);
        open(&folder)
    };
    let stem = "model.layers.0.mlp.up_proj";
    let name = |part: &str| format!("{stem}.{part}");
    let without = |part: &str| change("gptq", &|t| t.retain(|t| t.name != name(part)));
    assert_error!(without("qzeros"), Tensors, "up_proj.qzeros", "missing");
    assert_error!(without("scales"), Tensors, "up_proj.scales", "missing");
    for method in ["awq", "gptq"] {
        let wrong = |part: &str, shape: &[usize]| {
            change(method, &|t| {
                let tensor = find(t, &name(part));
                let size = tensor.dtype.bitsize() / 8;
                tensor.shape = shape.to_vec();
                tensor.bytes = vec![0; shape.iter().product::<usize>() * size];
            })
        };
        assert_error!(wrong("qzeros", &[3, 48]), Tensors, "up_proj.qzeros", "[4, 48]", "[3, 48]");
        assert_error!(wrong("scales", &[4, 8]), Tensors, "up_proj.scales", "[4, 384]", "[4, 8]");
        assert_error!(wrong("qweight", &[4]), Tensors, "up_proj.qweight", "two dimensions");
        assert_error!(wrong("qweight", &[0, 0]), Tensors, "up_proj", "expected weights");
        assert_error!(wrong("qweight", &[usize::MAX, 0]), Tensors, "up_proj", "expected weights");
        assert_error!(wrong("qweight", &[5, 7]), Tensors, "up_proj", "groups");
    }
    // One group with too many inputs, groups that are not there, and joined matrices with two orders.
    let first = |value: u32| {
        change("gptq", &|t| find(t, &name("g_idx")).bytes[..4].copy_from_slice(&value.to_le_bytes()))
    };
    assert_error!(first(1), Tensors, "up_proj.g_idx", "expected 64 inputs in each of 4 groups");
    assert_error!(first(u32::MAX), Tensors, "up_proj.g_idx", "expected 64 inputs");
    let error = change("gptq", &|t| find(t, &name("g_idx")).bytes.rotate_left(4));
    assert_error!(error, Tensors, "gate_proj", "up_proj", "one order of inputs");
    let error = change("gptq", &|t| find(t, &name("qweight")).dtype = Dtype::U32);
    assert_error!(error, Tensors, "up_proj.qweight", "I32");

    let described = |about: Value| {
        let (folder, _) = packed("gptq", 64);
        add_to_config(&folder, "quantization_config", about);
        open(&folder)
    };
    let about = |key: &str, value: Value| {
        let mut about = json!({"quant_method": "gptq", "bits": 4, "group_size": 64});
        about[key] = value;
        about
    };
    assert_error!(described(Value::Null), Config, "quantization_config");
    assert_error!(described(about("bits", json!(3))), Config, "bits", "expected 4, found 3");
    assert_error!(described(about("quant_method", json!("hqq"))), Config, "awq or gptq", "hqq");
    assert_error!(described(about("group_size", json!(48))), Tensors, "groups", "48");
    assert_error!(described(about("group_size", json!(0))), Config, "group_size", "0");

    // Scales of another type serve where nothing is lost.
    let scales = |value: f32| {
        change("awq", &|t| {
            let scales = find(t, &name("scales"));
            scales.dtype = Dtype::F32;
            scales.bytes = value.to_le_bytes().repeat(scales.bytes.len() / 2);
        })
    };
    scales(0.25).unwrap();
    assert_error!(scales(0.1), Tensors, "up_proj.scales", "exactly", "0.1");

    // A scale that is no number is found when it is loaded.
    let Some(gpu) = gpu() else { return };
    let (folder, _) = packed("awq", 64);
    let mut tensors = read_tensors(folder.path());
    find(&mut tensors, &name("scales")).bytes[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    let error = Model::load(&gpu, folder.path(), &LoadOptions::default());
    assert_error!(error, Tensors, "up_proj.weight", "finite scales");
}

/// Floats of eight bits are what they stand for; scales in tensors of their own are not ignored.
#[test]
fn weights_of_eight_bits() {
    let Some(gpu) = gpu() else { return };
    for (dtype, format) in [(Dtype::F8_E4M3, WeightFormat::F8_E4M3), (Dtype::F8_E5M2, WeightFormat::F8_E5M2)]
    {
        let (eight, plain) = (tiny(), tiny());
        let mut tensors = read_tensors(eight.path());
        let mut decoded = read_tensors(plain.path());
        for (tensor, plain) in tensors.iter_mut().zip(&mut decoded).filter(|(t, _)| t.shape.len() == 2) {
            let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes);
            tensor.bytes = quant::encode(format, &values);
            tensor.dtype = dtype;
            quant::decode(format, &tensor.bytes, &mut values);
            plain.bytes = bytemuck::cast_slice(&values).to_vec();
        }
        write_tensors(&eight.path().join("model.safetensors"), &tensors);
        write_tensors(&plain.path().join("model.safetensors"), &decoded);
        let [found, expected] = [&eight, &plain].map(|folder| {
            session(&load(&gpu, folder.path()), KvFormat::F32, 64, 64).prefill_all(&IDS).unwrap()
        });
        support::assert_close(format.name(), &found, &expected, 1e-4);

        let name = "model.layers.0.mlp.up_proj.weight_scale";
        tensors.push(Stored { name: name.into(), dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] });
        write_tensors(&eight.path().join("model.safetensors"), &tensors);
        assert_error!(open(&eight), UnsupportedFormat, "up_proj.weight", "weight_scale");
    }
}

/// A scale that is no number is found before it reaches the device.
#[test]
fn scales_that_are_no_numbers_name_their_tensor() {
    let (Some(shared), Some(gpu)) = (support::shared(), gpu()) else { return };
    for (file, tensor, at) in [("Q4_K_M", "blk.0.ffn_up.weight", 2), ("Q8_0", "blk.0.attn_q.weight", 0)] {
        let path = shared.join(format!("models/quants/tiny-{file}.gguf"));
        let mut bytes = std::fs::read(&path).unwrap();
        let stored = {
            let gguf = wgllama::files::Gguf::open(&path).unwrap();
            let row = gguf.tensor(tensor).unwrap().bytes[..64].to_vec();
            bytes.windows(64).position(|w| w == row).unwrap()
        };
        bytes[stored + at..][..2].copy_from_slice(&[0x00, 0x7c]);
        let folder = tempfile::tempdir().unwrap();
        let damaged = folder.path().join("damaged.gguf");
        std::fs::write(&damaged, bytes).unwrap();
        let error = Model::load(&gpu, &damaged, &LoadOptions::default());
        assert_error!(error, Tensors, "damaged.gguf", tensor, "finite scales");
    }
}

#[test]
fn device_that_does_not_exist() {
    let Some(gpu) = gpu() else { return };
    for wanted in ["no such card", "4711"] {
        let options = ContextOptions { device: Some(wanted.to_string()), ..Default::default() };
        assert_error!(Context::new(&options), DeviceNotFound, wanted, &gpu.adapter().name);
    }
}

// ---- sessions

fn tiny_session(gpu: &Context, context: usize) -> Session {
    session(&load(gpu, tiny().path()), KvFormat::F32, context, 64)
}

#[test]
fn prompt_longer_than_the_context() {
    let Some(gpu) = gpu() else { return };
    let mut session = tiny_session(&gpu, 8);
    assert_error!(session.prefill(&IDS), PromptTooLong, "9 tokens", "room for 8");
    assert!(session.ids().is_empty());
    session.prefill(&IDS[..5]).unwrap();
    let expected = session.logits().unwrap().to_vec();
    assert_error!(session.prefill(&IDS[..4]), PromptTooLong, "4 tokens", "room for 3");
    assert_error!(session.prefill_all(&IDS[..4]), PromptTooLong, "4 tokens", "room for 3");
    assert_error!(session.generate_ids(&IDS[..4], &Sampling::default()), PromptTooLong, "4 tokens");
    // Nothing of what failed has left a trace.
    assert_eq!((session.ids(), session.logits().unwrap()), (&IDS[..5], &expected[..]));
    session.prefill(&IDS[5..8]).unwrap();
    assert_error!(session.prefill(&IDS[8..]), ContextFull, "8 tokens");
    session.truncate(0);
    session.prefill(&IDS[..5]).unwrap();
    assert_eq!(session.logits().unwrap(), expected);
}

/// The last token is one that no room is left to feed.
#[test]
fn context_that_fills_up_ends_the_stream() {
    let Some(gpu) = gpu() else { return };
    let expected = greedy(&mut tiny_session(&gpu, 64), &IDS, 4);
    let mut session = tiny_session(&gpu, 12);
    let mut stream = session.generate_ids(&IDS, &Sampling::default().max_tokens(100)).unwrap();
    // What is left of a broken character comes as one piece more, which is no token.
    let ids: Vec<u32> = stream.by_ref().filter_map(|piece| piece.unwrap().id).collect();
    assert_eq!(ids, expected);
    assert_eq!(stream.finish(), Some(Finish::Context));
    drop(stream);
    assert_eq!(session.ids().len(), 12);
}

#[test]
fn an_end_of_the_text_can_be_ignored() {
    let Some(gpu) = gpu() else { return };
    let expected = greedy(&mut tiny_session(&gpu, 64), &IDS, 6);
    let folder = tiny();
    let generation = format!("{{\"eos_token_id\": {}}}", expected[3]);
    std::fs::write(folder.path().join("generation_config.json"), generation).unwrap();
    let mut session = session(&load(&gpu, folder.path()), KvFormat::F32, 64, 64);
    for (ignore, end) in [(false, Finish::End), (true, Finish::Length)] {
        session.truncate(0);
        let sampling = Sampling::default().max_tokens(6).ignore_eos(ignore);
        let mut stream = session.generate_ids(&IDS, &sampling).unwrap();
        let ids: Vec<u32> = stream.by_ref().filter_map(|piece| piece.unwrap().id).collect();
        let first = expected.iter().position(|id| *id == expected[3]).unwrap();
        assert_eq!(ids, expected[..if ignore { 6 } else { first }]);
        assert_eq!(stream.finish(), Some(end));
    }
}

#[test]
fn prompts_that_can_not_be_fed() {
    let Some(gpu) = gpu() else { return };
    let mut session = tiny_session(&gpu, 64);
    assert_error!(session.logits(), InvalidOption, "feed a prompt first");
    assert_error!(session.prefill(&[]), InvalidOption, "prompt", "no tokens");
    assert_error!(session.prefill_all(&[]), InvalidOption, "no tokens");
    assert_error!(session.capture(&[], &[]), InvalidOption, "no tokens");
    for id in [VOCAB as u32, u32::MAX] {
        let named = format!("id {id} ");
        assert_error!(session.prefill(&[1, id]), InvalidOption, &named, "258");
        assert_error!(session.prefill_all(&[id]), InvalidOption, &named, "258");
        assert_error!(session.capture(&[id], &["embed"]), InvalidOption, &named, "258");
    }
    assert!(session.ids().is_empty());
    session.prefill(&IDS).unwrap();
}

#[test]
fn session_options_that_are_zero_or_too_large() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, tiny().path());
    for context in [0, usize::MAX] {
        let options = SessionOptions { context: Some(context), ..Default::default() };
        assert_error!(model.session(&options), InvalidOption, "ctx", &format!("found {context}"));
    }
    let options = SessionOptions { chunk: Some(0), ..Default::default() };
    assert_error!(model.session(&options), InvalidOption, "chunk", "found 0");
    // A longer chunk than the context is no error: there are never so many tokens.
    let options = SessionOptions { chunk: Some(usize::MAX), context: Some(16), ..Default::default() };
    model.session(&options).unwrap();
}

#[test]
fn sampling_options_that_make_no_sense() {
    let Some(gpu) = gpu() else { return };
    let mut session = tiny_session(&gpu, 64);
    let sampling = Sampling::default().temperature(f32::NAN);
    assert_error!(session.generate_ids(&IDS, &sampling), InvalidOption, "temperature", "NaN");
    let sampling = Sampling { top_p: 1.5, ..Sampling::default() };
    assert_error!(session.generate_ids(&IDS, &sampling), InvalidOption, "top-p", "1.5");
    assert!(session.ids().is_empty(), "checked before anything is fed");
}

/// The context that `error` says would fit.
fn advice(error: &Error) -> u64 {
    let message = error.to_string();
    let (_, rest) = message.split_once("--ctx ").unwrap_or_else(|| panic!("no advice in: {message}"));
    rest.trim_end_matches(')').parse().unwrap()
}

#[test]
fn context_that_does_not_fit() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, tiny().path());
    for kv in KvFormat::ALL {
        let options = SessionOptions { context: Some(1 << 30), kv, ..Default::default() };
        let error = model.session(&options).err().unwrap();
        assert!(matches!(error, Error::OutOfMemory { .. }), "wrong variant: {error:?}");
        assert!(error.to_string().contains("1073741824 tokens"), "{error}");
        assert!((1..1 << 30).contains(&advice(&error)), "{error}");
    }
}

/// Many layers, each of which would fit: what is advised has to fit for all of them together.
/// Only a software adapter says how much memory there is.
#[test]
fn advised_context_fits_with_all_layers() {
    let Some(gpu) = gpu() else { return };
    let Some(available) = wgllama::host::available_memory() else { return };
    if gpu.caps().kind != AdapterKind::Cpu {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (heads, kv_heads, head_dim) = (1, 1, 8);
    let narrow = Tiny {
        hidden: 8,
        intermediate: 8,
        layers: 300,
        heads,
        kv_heads,
        head_dim,
        biases: false,
        ..Tiny::default()
    };
    narrow.write(folder.path()).unwrap();
    let model = load(&gpu, folder.path());
    let options = SessionOptions { context: Some(1 << 30), ..Default::default() };
    let error = model.session(&options).err().unwrap();
    let bytes = advice(&error) * bytes_per_token(&model.graph().caches, options.kv);
    // Other programs take and give memory meanwhile.
    assert!(bytes <= available + available / 4, "{bytes} bytes, {available} are there: {error}");
}

#[test]
fn threads_share_a_model() {
    let Some(gpu) = gpu() else { return };
    let folder = tiny();
    let model = load(&gpu, folder.path());
    let sampling = Sampling::default().temperature(0.8).seed(3).max_tokens(12);
    let text = |model: &Model| -> String {
        let mut session = session(model, KvFormat::F32, 64, 64);
        session.generate("One model", &sampling).unwrap().map(|piece| piece.unwrap().text).collect()
    };
    let expected = text(&model);
    assert!(!expected.is_empty());
    let threads: Vec<_> = std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..4).map(|_| scope.spawn(|| text(&model))).collect();
        spawned.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(threads.iter().all(|found| *found == expected), "{threads:?} instead of {expected:?}");
}

#[test]
fn capture_of_an_unknown_node() {
    let Some(gpu) = gpu() else { return };
    let mut session = tiny_session(&gpu, 64);
    assert_error!(session.capture(&IDS, &["embed", "layers.7.out"]), InvalidOption, "'layers.7.out'");
    assert!(session.ids().is_empty());
    let found = session.capture(&IDS, &["embed", "layers.1.out"]).unwrap();
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [9 * 48, 9 * 48]);
    assert_eq!(session.ids(), IDS);
}

#[test]
fn plans_are_shown_as_text() {
    let Some(gpu) = gpu() else { return };
    let session = tiny_session(&gpu, 64);
    for (phase, tokens) in [(Phase::Decode, "1 tokens"), (Phase::Prefill, "64 tokens")] {
        let text = session.plan(phase).unwrap().to_string();
        for part in ["gemv", "layers.1.", "attention", tokens] {
            assert!(text.contains(part), "'{part}' is not in: {text}");
        }
    }
}
