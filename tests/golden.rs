//! Real models and tiny models of the family against results that other people's software
//! computed in float64.

mod support;

use std::path::Path;

use support::{Golden, assert_close, assert_greedy, gpu, greedy, load, session, shared, smollm2};
use wgllama::{KvFormat, LoadOptions, Lora, Model};

/// One prompt of a golden file: last logits within `tolerance`, greedy ids equal while the
/// margin exceeds `margin`.
fn prompt(model: &Model, golden: &Golden, name: &str, kv: KvFormat, tolerance: f32, margin: f32) {
    let ids = golden.ids(&format!("{name}.ids"));
    let mut session = session(model, kv, 512, 512);
    session.prefill(&ids).unwrap();
    let what = format!("{name}, {kv} cache");
    let expected = golden.floats(&format!("{name}.last_logits"));
    assert_close(&what, session.logits().unwrap(), &expected, tolerance);
    session.truncate(0);
    let expected = golden.ids(&format!("{name}.greedy64"));
    let found = greedy(&mut session, &ids, expected.len());
    assert_greedy(&what, &found, &expected, &golden.floats(&format!("{name}.greedy64_margin")), margin);
    // No kernel had to be given up on the way.
    assert_eq!(model.context().losses(), [""; 0]);
}

fn stories(path: &str) {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/stories260K_f32.safetensors"));
    let model = load(&gpu, &shared.join(path));
    for name in ["short", "bos", "dialog", "unicode", "newline", "long"] {
        prompt(&model, &golden, name, KvFormat::F32, 1e-3, 0.0);
        prompt(&model, &golden, name, KvFormat::F16, 3e-2, 0.1);
    }
}

#[test]
fn stories260k_folder_equals_the_golden() {
    stories("models/stories260K");
}

#[test]
fn stories260k_gguf_equals_the_golden() {
    stories("models/stories260K-f32.gguf");
}

#[test]
fn stories260k_writes_the_golden_text() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let text = std::fs::read_to_string(shared.join("models/golden/stories260K_f32.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = Golden::open(&shared.join("models/golden/stories260K_f32.safetensors"));
    for path in ["models/stories260K", "models/stories260K-f32.gguf"] {
        let model = load(&gpu, &shared.join(path));
        let tokenizer = model.tokenizer().unwrap();
        for (name, prompt) in golden["prompts"].as_object().unwrap() {
            let ids = ids.ids(&format!("{name}.ids"));
            if let Some(text) = prompt["text"].as_str() {
                let encoded = tokenizer.encode_prompt(text, wgllama::Specials::Text).unwrap();
                assert_eq!(encoded, ids, "{path}: ids of {name}");
            }
            let mut session = session(&model, KvFormat::F32, 512, 512);
            let found = greedy(&mut session, &ids, 64);
            let text = tokenizer.decode(&found, false).unwrap();
            assert_eq!(
                text.trim_start(),
                prompt["greedy_text"].as_str().unwrap().trim_start(),
                "{path}: {name}"
            );
        }
    }
}

#[test]
fn stories260k_gives_the_golden_at_every_position() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/stories260K_f32.safetensors"));
    let model = load(&gpu, &shared.join("models/stories260K"));
    for name in ["short", "dialog", "unicode", "long"] {
        let ids = golden.ids(&format!("{name}.ids"));
        let logits = session(&model, KvFormat::F32, 512, 100).prefill_all(&ids).unwrap();
        let vocab = model.config().vocab_size;
        let top: Vec<f32> = golden
            .ids(&format!("{name}.top10_ids"))
            .iter()
            .enumerate()
            .map(|(i, id)| logits[i / 10 * vocab + *id as usize])
            .collect();
        assert_close(name, &top, &golden.floats(&format!("{name}.top10_logits")), 1e-3);
        let lse: Vec<f32> = logits
            .chunks_exact(vocab)
            .map(|row| row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32)
            .collect();
        assert_close(name, &lse, &golden.floats(&format!("{name}.lse")), 1e-3);
    }
}

#[test]
fn smollm2_equals_the_golden_with_an_f32_cache() {
    smollm2_equals_the_golden(KvFormat::F32, 1e-3, 0.02);
}

#[test]
fn smollm2_equals_the_golden_with_an_f16_cache() {
    smollm2_equals_the_golden(KvFormat::F16, 3e-2, 0.1);
}

fn smollm2_equals_the_golden(kv: KvFormat, tolerance: f32, margin: f32) {
    let (Some(shared), Some(path), Some(gpu)) = (shared(), smollm2(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/smollm2_q4_1_f32dequant.safetensors"));
    let model = load(&gpu, &path);
    for name in ["short", "one", "chat", "unicode", "code", "long"] {
        prompt(&model, &golden, name, kv, tolerance, margin);
    }
}

/// The device that tests run on, with the kernels that a GPU gets.
fn as_gpu() -> Option<wgllama::Context> {
    gpu()?;
    let options =
        wgllama::ContextOptions { treat_as: Some(wgllama::caps::AdapterKind::Discrete), ..support::device() };
    Some(wgllama::Context::new(&options).unwrap())
}

/// Fused norms, split attention, tiles.
#[test]
fn smollm2_equals_the_golden_with_the_kernels_of_gpus() {
    let (Some(shared), Some(path), Some(context)) = (shared(), smollm2(), as_gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/smollm2_q4_1_f32dequant.safetensors"));
    let model = load(&context, &path);
    let plan = session(&model, KvFormat::F32, 512, 512).plan(wgllama::Phase::Decode).unwrap().to_string();
    for word in ["norm,", "swiglu", "split"] {
        assert!(plan.contains(word), "no {word} in\n{plan}");
    }
    for name in ["short", "one", "chat", "long"] {
        prompt(&model, &golden, name, KvFormat::F32, 1e-3, 0.02);
    }
}

/// Activations of eight bits are as far off as in engines that know no others, and no further.
#[test]
fn smollm2_is_near_the_golden_with_activations_of_bytes() {
    let (Some(shared), Some(path), Some(context)) = (shared(), smollm2(), as_gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/smollm2_q4_1_f32dequant.safetensors"));
    let model = load(&context, &path);
    let options = wgllama::SessionOptions {
        context: Some(64),
        kv: KvFormat::F32,
        activations: wgllama::Activations::Int8,
        chunk: Some(1),
        ..Default::default()
    };
    let mut session = model.session(&options).unwrap();
    let plan = session.plan(wgllama::Phase::Decode).unwrap().to_string();
    assert!(plan.contains("gemv_int8") && !plan.contains("gemv["), "{plan}");
    for name in ["short", "one"] {
        session.truncate(0);
        session.prefill(&golden.ids(&format!("{name}.ids"))).unwrap();
        let expected = golden.floats(&format!("{name}.last_logits"));
        let found = session.logits().unwrap();
        assert_close(name, found, &expected, 1.3);
        let top =
            |logits: &[f32]| logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
        assert_eq!(top(found), top(&expected));
    }
}

/// What matrix units round to halves is no further off than an f16 cache.
#[test]
fn prompts_through_matrix_units_are_near_the_golden() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    if gpu.caps().coop.is_none() {
        eprintln!("skipped: the adapter has no cooperative matrices");
        return;
    }
    let golden = Golden::open(&shared.join("models/golden/stories260K_f32.safetensors"));
    let model = load(&gpu, &shared.join("models/stories260K"));
    let options = wgllama::SessionOptions { kv: KvFormat::F32, ..Default::default() };
    let mut session = model.session(&options).unwrap();
    let plan = session.plan(wgllama::Phase::Prefill).unwrap().to_string();
    assert!(plan.contains("gemm_coop"), "{plan}");
    for name in ["short", "bos", "dialog", "unicode", "newline", "long"] {
        session.truncate(0);
        session.prefill(&golden.ids(&format!("{name}.ids"))).unwrap();
        let expected = golden.floats(&format!("{name}.last_logits"));
        assert_close(name, session.logits().unwrap(), &expected, 3e-2);
    }
}

#[test]
fn smollm2_gives_the_golden_inside_the_layers() {
    let (Some(shared), Some(path), Some(gpu)) = (shared(), smollm2(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/smollm2_q4_1_f32dequant.safetensors"));
    let model = load(&gpu, &path);
    let ids = golden.ids("short.ids");
    let layers = model.config().num_hidden_layers;
    let mut names = vec!["embed".to_string()];
    names.extend((0..layers).map(|l| format!("layers.{l}.out")));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut session = session(&model, KvFormat::F32, 512, 512);
    let found = session.capture(&ids, &names).unwrap();
    let hidden = golden.floats("short.hidden");
    let per_layer = ids.len() * model.config().hidden_size;
    for (layer, (found, expected)) in found.iter().zip(hidden.chunks_exact(per_layer)).enumerate() {
        // The residual stream of this model reaches several thousands.
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        assert_close(names[layer], found, expected, 1e-5 * scale);
    }
    session.truncate(0);
    let inner = ["attn_norm", "attn", "o", "mlp_norm", "down"].map(|n| format!("layers.0.{n}"));
    let inner: Vec<&str> = inner.iter().map(String::as_str).collect();
    let found = session.capture(&ids, &inner).unwrap();
    let expected = ["attn_norm", "attn_ctx", "attn_out", "ffn_norm", "mlp_out"];
    for (found, name) in found.iter().zip(expected) {
        let expected = golden.floats(&format!("short.l0_{name}"));
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        assert_close(name, found, &expected, 1e-5 * scale);
    }
}

const FAMILIES: [&str; 16] = [
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo2",
    "qwen3",
    "phi3",
    "granite",
    "llama-mha",
    "llama-gqa",
    "llama-mqa",
    "llama-linear-rope",
    "llama3-rope",
    "mistral-swa",
    "qwen2",
    "smollm3",
];

#[test]
fn tiny_models_of_each_family_equal_the_golden() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    for name in FAMILIES {
        family(&shared.join("models/families").join(name), &gpu);
    }
}

/// Tiny models that lie here: made as the others were, by transformers 5.24 in float64.
#[test]
fn own_tiny_models_equal_the_golden() {
    let Some(gpu) = gpu() else { return };
    for path in families() {
        family(&path, &gpu);
    }
}

/// The folders below `tests/families`.
fn families() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families");
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|path| path.join("golden.safetensors").exists());
    all.sort();
    assert!(all.len() >= 6);
    all
}

/// Adapters that PEFT wrote, alone and together, against a model that they were merged into in float64.
#[test]
fn adapters_equal_merged_models() {
    let Some(gpu) = gpu() else { return };
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let base = tests.join("families/llama-dynamic-rope");
    let adapter = |name: &str, scale| Lora::open(&tests.join("adapters").join(name), scale).unwrap();
    for (golden, adapters) in [
        ("golden", vec![adapter("one", 1.0)]),
        ("golden-two", vec![adapter("two", 1.0)]),
        ("golden-both", vec![adapter("one", 0.5), adapter("two", 1.0)]),
    ] {
        let golden = Golden::open(&tests.join("adapters").join(format!("{golden}.safetensors")));
        let ids = golden.ids("input_ids");
        let options = LoadOptions { adapters: &adapters, ..LoadOptions::default() };
        let model = Model::load(&gpu, &base, &options).unwrap();
        let plain = load(&gpu, &base);
        // Two thin matrices for each of the adapted.
        let more = model.graph().weights.len() - plain.graph().weights.len();
        assert_eq!(more, if adapters.len() == 1 && adapters[0].modules().count() == 4 { 4 } else { 16 });
        let mut session = session(&model, KvFormat::F32, 256, 64);
        let logits = session.prefill_all(&ids).unwrap();
        assert_close("adapted", &logits, &golden.floats("logits"), 1e-3);
        session.truncate(0);
        assert_eq!(greedy(&mut session, &ids, 16), golden.ids("greedy"));
    }
}

/// Folders like those of the families, wherever they come from: all below $WGLLAMA_FAMILIES.
#[test]
#[ignore = "needs models that are not in this repository"]
fn tiny_models_from_elsewhere_equal_their_goldens() {
    let folder = std::env::var("WGLLAMA_FAMILIES").expect("WGLLAMA_FAMILIES names the folder");
    let gpu = gpu().expect("an adapter");
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    for path in folders.iter().filter(|path| path.join("golden.safetensors").exists()) {
        println!("{}", path.display());
        family(path, &gpu);
    }
}

fn family(path: &Path, gpu: &wgllama::Context) {
    let golden = Golden::open(&path.join("golden.safetensors"));
    let model = load(gpu, path);
    let ids = golden.ids("input_ids");
    let mut session = session(&model, KvFormat::F32, 256, 64);
    let logits = session.prefill_all(&ids).unwrap();
    assert_close(&path.display().to_string(), &logits, &golden.floats("logits"), 1e-3);
    session.truncate(0);
    let greedy = greedy(&mut session, &ids, 16);
    assert_eq!(greedy, golden.ids("greedy"), "{}", path.display());
    assert_eq!(model.context().losses(), [""; 0]);
}

/// Files of one tiny Llama, some of them mixtures of formats.
const TINY_FORMATS: [&str; 15] = [
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M",
    "Q6_K", "IQ4_NL", "IQ4_XS",
];

#[test]
fn formats_of_a_tiny_llama_equal_the_golden() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/quants/golden.safetensors"));
    let ids = golden.ids("input_ids");
    for format in TINY_FORMATS {
        let path = shared.join(format!("models/quants/tiny-{format}.gguf"));
        let model = match Model::load(&gpu, &path, &Default::default()) {
            Ok(model) => model,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let logits = session(&model, KvFormat::F32, 128, 64).prefill_all(&ids).unwrap();
        assert_close(format, &logits, &golden.floats(&format!("logits.{format}")), 1e-3);
    }
}

/// The perplexity that another engine's protocol gives for these weights in float64.
#[test]
fn smollm2_predicts_a_text_as_well_as_the_golden() {
    let (Some(shared), Some(path), Some(gpu)) = (shared(), smollm2(), gpu()) else { return };
    let golden = std::fs::read(shared.join("models/golden/smollm2_q4_1_f32dequant.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let expected = golden["ppl"]["ppl_llamacpp_protocol_512"].as_f64().unwrap();
    let text = std::fs::read_to_string(shared.join("models/golden/ppl_text_2048tok.txt")).unwrap();
    let model = load(&gpu, &path);
    let ids = model.tokenizer().unwrap().encode(&text, wgllama::Specials::Text).unwrap();
    let windows = wgllama::generate::Windows::Halves(512);
    for (kv, tolerance) in [(KvFormat::F16, 1e-3), (KvFormat::Q8_0, 4e-3), (KvFormat::Q4_0, 0.25)] {
        let found = session(&model, kv, 512, 128).perplexity(&ids, windows, None, |_| ()).unwrap();
        assert_eq!(found.tokens, 4 * 255);
        let off = (found.value() / expected - 1.0).abs();
        assert!(off < tolerance, "{kv}: {} instead of {expected}", found.value());
    }
}

/// Decoders give the values that another decoder gives, to the last bit.
#[test]
fn real_blocks_decode_to_the_golden() {
    let Some(shared) = shared() else { return };
    let golden = Golden::open(&shared.join("models/quants/blocks.safetensors"));
    for format in wgllama::WeightFormat::ALL {
        let name = format.name().to_uppercase();
        let Some(bytes) = golden.bytes(&format!("{name}.bytes")) else { continue };
        let mut found = vec![0.0; bytes.len() / format.block_bytes() * format.block_len()];
        wgllama::quant::decode(format, &bytes, &mut found);
        assert_eq!(found, golden.floats(&format!("{name}.values")), "{name}");
    }
}

#[test]
fn chunks_of_the_prompt_do_not_change_the_text() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/stories260K_f32.safetensors"));
    let model = load(&gpu, &shared.join("models/stories260K"));
    for name in ["dialog", "long"] {
        let ids = golden.ids(&format!("{name}.ids"));
        for kv in KvFormat::ALL {
            let texts = [1, 7, 32, 512].map(|chunk| greedy(&mut session(&model, kv, 512, chunk), &ids, 64));
            assert!(texts.windows(2).all(|w| w[0] == w[1]), "{name}, {kv}: {texts:?}");
        }
    }
}

#[test]
fn chunks_of_the_prompt_do_not_change_smollm2s_text() {
    let (Some(shared), Some(path), Some(gpu)) = (shared(), smollm2(), gpu()) else { return };
    let golden = Golden::open(&shared.join("models/golden/smollm2_q4_1_f32dequant.safetensors"));
    let model = load(&gpu, &path);
    let ids = golden.ids("chat.ids");
    let texts =
        [1, 7, 32, 512].map(|chunk| greedy(&mut session(&model, KvFormat::F16, 512, chunk), &ids, 12));
    assert!(texts.windows(2).all(|w| w[0] == w[1]), "{texts:?}");
}

#[test]
#[ignore = "prints the table of measured errors in docs/NUMERICS.md"]
fn print_measured_errors() {
    let (Some(shared), Some(path), Some(gpu)) = (shared(), smollm2(), gpu()) else { return };
    let goldens = shared.join("models/golden");
    let models = [
        (
            "stories260K F32",
            shared.join("models/stories260K"),
            "stories260K_f32",
            "short dialog unicode newline long",
        ),
        ("SmolLM2-135M Q4_1", path, "smollm2_q4_1_f32dequant", "short one chat unicode code long"),
    ];
    for (name, path, golden, prompts) in models {
        let golden = Golden::open(&goldens.join(format!("{golden}.safetensors")));
        let model = load(&gpu, &path);
        for kv in KvFormat::ALL {
            for prompt in prompts.split(' ') {
                let ids = golden.ids(&format!("{prompt}.ids"));
                let mut session = session(&model, kv, 512, 512);
                session.prefill(&ids).unwrap();
                let expected = golden.floats(&format!("{prompt}.last_logits"));
                let (max, _) = support::max_error(session.logits().unwrap(), &expected);
                let squares =
                    session.logits().unwrap().iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2));
                let rms = (squares.sum::<f64>() / expected.len() as f64).sqrt();
                println!("| {name} | {kv} | {prompt} ({}) | {max:.1e} | {rms:.1e} |", ids.len());
            }
        }
    }
    let golden = Golden::open(&shared.join("models/quants/golden.safetensors"));
    let ids = golden.ids("input_ids");
    for format in TINY_FORMATS {
        let model = load(&gpu, &shared.join(format!("models/quants/tiny-{format}.gguf")));
        let expected = golden.floats(&format!("logits.{format}"));
        for kv in KvFormat::ALL {
            let found = session(&model, kv, 128, 64).divergence(&ids, &expected).unwrap();
            println!(
                "| {format} | {kv} | {:.1e} | {:.1e} | {:.1e} |",
                found.largest,
                found.rms(),
                found.mean()
            );
        }
    }
}
