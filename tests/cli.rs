//! The command line as its users meet it: what goes to standard output and what to standard error,
//! exit codes, and what it says when something is wrong.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use support::tiny::{Tiny, VOCAB};
use support::{assert_close, gpu, shared, smollm2};
use tempfile::TempDir;
use wgllama::caps::AdapterKind;

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let ran = Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.err.contains("panicked"), "{ran:?}");
        ran
    }

    /// What it printed, after it ended well.
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Asserts that it failed with a message that has all of `parts`, and printed nothing else.
    fn fails(&self, parts: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{self:?}");
        let message = self.err.lines().find(|line| line.starts_with("error: "));
        assert!(message.is_some(), "no line begins with 'error: ': {self:?}");
        for part in parts {
            assert!(self.err.contains(part), "'{part}' is not in: {}", self.err);
        }
    }
}

fn wgllama(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgllama"));
    // Whoever runs the tests may have these set for themselves.
    command.args(args).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command
}

/// A command that opens a device: the one that tests run on.
fn on_device(args: &[&str]) -> Command {
    let mut command = wgllama(args);
    if let Ok(device) = std::env::var("WGLLAMA_TEST_DEVICE") {
        command.args(["--device", &device]);
    }
    command
}

fn ran(mut command: Command) -> Ran {
    Ran::new(command.output().unwrap())
}

fn ran_with_stdin(mut command: Command, text: &[u8]) -> Ran {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    Ran::new(child.wait_with_output().unwrap())
}

fn json(mut command: Command) -> Value {
    command.arg("--json");
    let out = ran(command).ok();
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

/// The project's own tiny model, with files added or replaced.
struct Model(TempDir);

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Tiny::default().write(folder.path()).unwrap();
        Self(folder)
    }

    fn with(self, name: &str, text: &str) -> Self {
        std::fs::write(self.file(name), text).unwrap();
        self
    }

    fn without(self, name: &str) -> Self {
        std::fs::remove_file(self.file(name)).unwrap();
        self
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn path(&self) -> &str {
        text(self.0.path())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const PROMPT: &str = "A tiny model";

// ---- run

/// All of a run with the same seed: text alone on standard output, the figures on standard error,
/// and the same text in the JSON object.
#[test]
fn run_streams_what_json_holds() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let args = ["run", model.path(), PROMPT, "--seed", "11", "-n", "24", "--temperature", "1.5"];
    let streamed = ran(on_device(&args));
    let object = json(on_device(&args));

    let text = object["text"].as_str().unwrap();
    assert_eq!(streamed.out, format!("{text}\n"), "{streamed:?}");
    assert_eq!(streamed.code, Some(0));
    let adapter = object["adapter"].as_str().unwrap();
    // Chance may end the text before its greatest length.
    let (generated, finish) = (object["ids"].as_array().unwrap().len(), object["finish"].as_str().unwrap());
    assert!(generated <= 24 && (finish == "end" || finish == "length" && generated == 24), "{object}");
    let figures = [format!("generated {generated} tokens"), format!("({finish})")];
    for part in [adapter, "loaded in", "prompt 13 tokens", &figures[0], &figures[1]] {
        assert!(streamed.err.contains(part), "'{part}' is not in: {}", streamed.err);
    }
    assert_eq!(streamed.err.matches(" tok/s").count(), 2, "{}", streamed.err);
    // Standard error is a pipe here: no bar, and nothing that only a terminal understands.
    assert!(!streamed.err.contains(['\u{1b}', '\r']) && !streamed.err.contains("loading"), "{streamed:?}");

    let keys: BTreeSet<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "text",
        "ids",
        "finish",
        "seed",
        "prompt_tokens",
        "adapter",
        "backend",
        "load_seconds",
        "prompt_seconds",
        "prompt_tokens_per_second",
        "generation_seconds",
        "generation_tokens_per_second",
    ];
    assert!(keys.is_superset(&BTreeSet::from(expected)), "{keys:?}");
    assert_eq!((&object["seed"], &object["prompt_tokens"]), (&11.into(), &(PROMPT.len() + 1).into()));
    for key in ["load_seconds", "prompt_seconds", "generation_seconds"] {
        assert!(object[key].as_f64().unwrap() > 0.0, "{key}: {object}");
    }
}

#[test]
fn run_repeats_with_the_same_seed_only() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let with = |options: &[&str]| {
        let args = [&["run", model.path(), PROMPT, "-n", "16"], options].concat();
        json(on_device(&args))["ids"].clone()
    };
    let seed_5 = with(&["--seed", "5"]);
    assert_eq!(with(&["--seed", "5"]), seed_5);
    assert_ne!(with(&["--seed", "6"]), seed_5);
    // The likeliest tokens need no chance: top-k of 1 is the same as temperature 0.
    assert_eq!(
        with(&["--temperature", "0", "--seed", "1"]),
        with(&["--top-k", "1", "--seed", "2", "--kv", "f16"])
    );
}

#[test]
fn run_takes_the_prompt_from_stdin() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let options = ["-n", "8", "--temperature", "0"];
    let with = |prompt| on_device(&[&["run", model.path(), prompt], &options[..]].concat());
    assert_eq!(ran_with_stdin(with("-"), PROMPT.as_bytes()).ok(), ran(with(PROMPT)).ok());
    ran_with_stdin(with("-"), b"\xff\xfe").fails(&["UTF-8"]);
}

/// A model that knows nothing writes bytes that are no text, which makes many broken characters:
/// each part that is written is whole ones, and the text is written in parts. (A socket of datagrams
/// keeps what each write held, however late it is read.)
#[cfg(unix)]
#[test]
fn run_writes_whole_characters_as_they_come() {
    use std::os::{fd::OwnedFd, unix::net::UnixDatagram};

    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let args = ["run", model.path(), PROMPT, "-n", "64", "--seed", "3", "--temperature", "3", "--top-k", "0"];
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut child = on_device(&args).stdout(OwnedFd::from(theirs)).stderr(Stdio::null()).spawn().unwrap();
    ours.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
    let mut parts = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let ended = child.try_wait().unwrap();
        while let Ok(n) = ours.recv(&mut buffer) {
            parts.push(String::from_utf8(buffer[..n].to_vec()).unwrap());
        }
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
    }
    assert!(parts.len() > 4, "{parts:?}");
    let text = parts.concat();
    assert!(text.ends_with('\n') && text.contains('\u{fffd}'), "{text:?}");
}

/// The text may break off inside of a character; what there is of it is no token more.
#[test]
fn run_counts_tokens_and_not_parts_of_the_text() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    // After this prompt the likeliest eleventh token is the first byte of two.
    let prompt = "A tiny model, 1 2 3 \u{e9}";
    let with =
        |n| json(on_device(&["run", model.path(), prompt, "--temperature", "0", "--kv", "f32", "-n", n]));
    let object = with("11");
    let ids = object["ids"].as_array().unwrap();
    assert_eq!((ids.len(), &ids[10], &object["finish"]), (11, &201.into(), &"length".into()), "{object}");
    assert!(object["text"].as_str().unwrap().ends_with('\u{fffd}'), "{object}");
    let object = with("0");
    assert_eq!((&object["ids"], &object["text"]), (&Value::Array(Vec::new()), &"".into()), "{object}");
}

#[test]
fn run_uses_the_chat_template_unless_raw() {
    if gpu().is_none() {
        return;
    }
    let template = r#"{"chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"}"#;
    let model = Model::new().with("tokenizer_config.json", template);
    let tokens = |options: &[&str]| {
        let args = [&["run", model.path(), "ab", "-n", "1", "--temperature", "0"], options].concat();
        json(on_device(&args))["prompt_tokens"].as_u64().unwrap()
    };
    // One token a byte, and the one that begins a text.
    assert_eq!((tokens(&[]), tokens(&["--raw"])), (1 + "[user]ab".len() as u64, 3));

    let model = model.with("tokenizer_config.json", r#"{"chat_template": "{% for %}"}"#);
    ran(on_device(&["run", model.path(), "ab"])).fails(&["chat template"]);
}

/// Built-in templates and files, system messages and tools, for a model that brings no template.
#[test]
fn run_takes_other_chat_templates() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let model = text(folder.path());
    let tokens = |more: &[&str]| {
        let args = [&["run", "-n", "1", "--temperature", "0"], more, &[model, "Hi"]].concat();
        json(on_device(&args))["prompt_tokens"].as_u64().unwrap()
    };
    // A byte is a token, and so is BOS.
    assert_eq!(tokens(&[]), 3);
    assert_eq!(
        tokens(&["--chat-template", "openchat"]),
        1 + "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:".len() as u64
    );
    let system = ["--chat-template", "chatml", "--system", "Be brief."];
    let chat =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokens(&system), 1 + chat.len() as u64);

    let file = folder.path().join("own.jinja");
    std::fs::write(&file, "{{ tools | length }}{{ tools[0].name }}:{{ messages[0].content }}").unwrap();
    let tools = folder.path().join("tools.json");
    std::fs::write(&tools, r#"[{"name": "look"}]"#).unwrap();
    assert_eq!(
        tokens(&["--chat-template", text(&file), "--tools", text(&tools)]),
        1 + "1look:Hi".len() as u64
    );

    let run = |more: &[&str]| ran(wgllama(&[&["run"], more, &[model, "Hi"]].concat()));
    run(&["--chat-template", "nobody"]).fails(&["'nobody'", "llama2", "zephyr"]);
    run(&["--chat-template", "no/such.jinja"]).fails(&["no/such.jinja"]);
    run(&["--system", "Be brief."]).fails(&["--chat-template"]);
    std::fs::write(&tools, "{}").unwrap();
    run(&["--chat-template", "chatml", "--tools", text(&tools)]).fails(&["tools", "list"]);
}

#[test]
fn run_adds_adapters() {
    if gpu().is_none() {
        return;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let (base, out) = (tests.join("families/llama-dynamic-rope"), tempfile::tempdir().unwrap());
    let (one, two) = (tests.join("adapters/one"), tests.join("adapters/two"));
    let logits = |adapters: &[&str]| {
        let file = out.path().join("logits.safetensors");
        let lora: Vec<&str> = adapters.iter().flat_map(|a| ["--lora", *a]).collect();
        let args = ["logits", "--tokens", "5,6,7,8", "--kv", "f32", "--out", text(&file), text(&base)];
        ran(on_device(&[&args[..], &lora].concat())).ok();
        let bytes = std::fs::read(&file).unwrap();
        let logits = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec();
        logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let half = format!("{}:0.5", text(&one));
    let (plain, both) = (logits(&[]), logits(&[&half, text(&two)]));
    assert!(support::max_error(&plain, &both).0 > 0.1);
    // Half of it twice is all of it.
    assert_close("scales", &logits(&[&half, &half]), &logits(&[text(&one)]), 1e-4);
    let args = ["logits", "--tokens", "5", "--out", "x", "--lora", "nowhere", text(&base)];
    ran(wgllama(&args)).fails(&["nowhere", "adapter_config.json"]);
}

#[test]
fn run_explains_what_is_missing() {
    let model = Model::new();
    ran(wgllama(&["run", model.path()])).fails(&["PROMPT", model.path()]);
    ran(wgllama(&["run", "no-such-model.gguf"])).fails(&["PROMPT", "no-such-model.gguf"]);
    ran(wgllama(&["run", "no-such-model.gguf", "Hello"])).fails(&["no-such-model.gguf"]);
    let model = model.without("tokenizer.json");
    ran(wgllama(&["run", model.path(), "Hello"])).fails(&["tokenizer.json"]);
    let model = model.without("config.json");
    ran(wgllama(&["run", model.path(), "Hello"])).fails(&["config.json"]);
}

#[test]
fn run_says_how_to_get_the_default_model() {
    let home = tempfile::tempdir().unwrap();
    let mut command = wgllama(&["run", "Hello"]);
    command.env("HOME", home.path()).env("XDG_CACHE_HOME", home.path().join("cache"));
    // Elsewhere the cache folder is not told by the environment.
    if cfg!(unix) {
        ran(command).fails(&["make demo", text(home.path()), ".gguf"]);
    }
}

#[test]
fn run_refuses_options_that_make_no_sense() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--temperature=-1"], &["temperature", "-1"]),
        (&["--top-p", "0"], &["top-p", "0"]),
        (&["--ctx", "0"], &["ctx", "0"]),
        (&["--ctx", "4"], &["13 tokens", "room for 4"]),
        (&["--ctx", "1073741824"], &["memory", "1073741824 tokens", "would fit (--ctx "]),
    ];
    for (options, parts) in cases {
        ran(on_device(&[&["run", model.path(), PROMPT], options].concat())).fails(parts);
    }
    ran(wgllama(&["run", model.path(), PROMPT, "--device", "no such card"]))
        .fails(&["'no such card'", "available: 0 ("]);
}

/// A real model: its template, its tokenizer, and text that is the same from both of its files.
#[test]
fn run_real_models() {
    if gpu().is_none() {
        return;
    }
    if let Some(shared) = shared() {
        let generate = |name: &str| {
            let path = shared.join("models").join(name);
            let args = ["run", text(&path), "Once upon a time", "-n", "24", "--temperature", "0"];
            ran(on_device(&[&args[..], &["--raw", "--kv", "f32"]].concat())).ok()
        };
        let found = generate("stories260K");
        assert!(found.starts_with(", there was a little"), "{found}");
        assert_eq!(generate("stories260K-f32.gguf"), found);
    }
    if let Some(model) = smollm2() {
        let prompt = "Explain in two sentences why the sky is blue.";
        let object = json(on_device(&["run", text(&model), prompt, "-n", "8", "--temperature", "0"]));
        assert_eq!(object["prompt_tokens"], 40, "{object}");
        assert!(object["text"].as_str().unwrap().contains("sky"), "{object}");
    }
}

/// Beyond the file's map, and the weights and the cache where they are the host's memory, a model
/// takes little more than the tiny one: what the adapter needs for itself, the tokenizer, and
/// activations. A copy of the file, or weights expanded to f32, would show.
#[test]
fn run_keeps_host_memory_small() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = smollm2() else { return };
    let figures = |path: &str| json(on_device(&["run", path, "Hello", "-n", "2", "--ctx", "128"]));
    let bytes = |object: &Value, key: &str| object[key].as_u64().unwrap_or_default();
    let tiny = figures(Model::new().path());
    // The first run may compile shaders, which takes memory of its own.
    figures(text(&model));
    let large = figures(text(&model));
    // Zero where the system does not tell.
    let (tiny, peak) = (bytes(&tiny, "peak_host_bytes"), bytes(&large, "peak_host_bytes"));
    let (weights, cache) = (bytes(&large, "weight_bytes"), bytes(&large, "cache_bytes"));
    let map = std::fs::metadata(&model).unwrap().len();
    assert!(weights < map + map / 10, "{weights} bytes on the device, {map} in the file");
    let on_host = if gpu.caps().kind == AdapterKind::Cpu { weights + cache } else { 0 };
    let known = tiny + map + on_host;
    assert!(peak <= known + (100 << 20), "{peak} bytes, {known} of them explained: {large}");
}

// ---- devices

const KINDS: [&str; 5] = ["discrete", "integrated", "virtual", "cpu", "other"];

#[test]
fn devices_are_listed() {
    let Some(gpu) = gpu() else { return };
    let out = ran(wgllama(&["devices"])).ok();
    assert!(out.starts_with("* 0: "), "{out}");
    assert!(out.contains(&gpu.adapter().name) && out.contains(&gpu.adapter().backend), "{out}");
    let kinds = out.lines().filter(|l| KINDS.iter().any(|k| l.trim().starts_with(&format!("{k}, "))));
    assert!(kinds.count() >= 1, "{out}");
}

/// Vulkan alone, and a loader that is told of no driver.
#[cfg(target_os = "linux")]
#[test]
fn no_adapter_is_explained_and_needed_only_for_the_gpu() {
    let model = Model::new();
    let blind = |args: &[&str]| {
        let mut command = wgllama(args);
        command.env("WGPU_BACKEND", "vulkan");
        command.env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent");
        ran(command)
    };
    let advice = ["no GPU adapter", "apt-get install", "mesa-vulkan-drivers"];
    blind(&["devices"]).fails(&advice);
    blind(&["run", model.path(), PROMPT]).fails(&advice);
    let file = model.file("logits.safetensors");
    blind(&["logits", model.path(), "--tokens", "1", "--out", text(&file)]).fails(&advice);
    assert!(!file.exists());
    assert!(blind(&["inspect", model.path()]).ok().contains("llama"));
    assert!(blind(&["tokenize", model.path(), PROMPT]).ok().contains("12 tokens"));
}

// ---- inspect

/// The numbers are worked out by hand from the tiny model's sizes.
#[test]
fn inspect_describes_the_tiny_model() {
    let model = Model::new();
    let out = ran(wgllama(&["inspect", model.path()])).ok();
    // Matrices of a layer: q and o 60 x 48, k and v 20 x 48, three of 100 x 48.
    let matrices = 2 * 60 * 48 + 2 * 20 * 48 + 3 * 100 * 48;
    let biases = 60 + 20 + 20 + 48 + 100 + 100 + 48;
    let values = 2 * VOCAB * 48 + 2 * (matrices + biases + 2 * 48) + 48;
    assert_eq!(values, 69_960);
    // Keys and values of 2 layers and 2 heads, which are stored as 16 values of 2 or 4 bytes.
    let lines = [
        "container        safetensors",
        "architecture     llama",
        "layers           2",
        "hidden size      48",
        "feed-forward     100",
        "heads            6 of 10, 2 for keys and values (grouped-query, 3 to 1)",
        "vocabulary       258",
        "trained context  512",
        "rope             theta 10000, 10 of 10 turn",
        "norm epsilon     0.00001",
        "embeddings       untied",
        "weights          0.1 M in 0.3 MB",
        "  F32            35 tensors, 0.3 MB",
        "cache in f16     256 bytes a token, 0.1 MB for 512 tokens",
        "cache in f32     512 bytes a token, 0.3 MB for 512 tokens",
        "tokenizer        byte-level BPE, 258 tokens, no chat template",
    ];
    for line in lines {
        assert!(out.lines().any(|l| l == line), "'{line}' is not in:\n{out}");
    }
}

#[test]
fn inspect_takes_a_context_of_any_length() {
    let model = Model::new();
    let out = ran(wgllama(&["inspect", model.path(), "--ctx", "100000"])).ok();
    assert!(out.contains("25.6 MB for 100000 tokens") && out.contains("51.2 MB for 100000 tokens"), "{out}");
    let longest = u64::MAX.to_string();
    let ran = ran(wgllama(&["inspect", model.path(), "--ctx", &longest]));
    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
}

/// Every size of the papers, in four bits on a card; no file and no GPU is asked for.
#[test]
fn inspect_states_the_memory_of_presets() {
    // Weights of 18 bytes for 32, but for the norms; keys and values of two bytes.
    // 7B: 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 11008, and 2 x 32000 x 4096. 70B: 80 layers of 2 x
    // 8192 x 8192, 2 x 1024 x 8192 and 3 x 8192 x 28672, and 2 x 32000 x 8192.
    for (name, weights, cache) in [
        ("llama-7b", "weights 3790.2 MB", "cache in f16 1073.7 MB"),
        ("llama-2-70b", "weights 38798.6 MB", "cache in f16 671.1 MB"),
    ] {
        let options = ["inspect", "--preset", name, "--format", "q4_0", "--ctx", "2048"];
        let out = ran(wgllama(&options)).ok();
        assert!(out.contains(weights) && out.contains(cache), "{out}");
    }
    for name in wgllama::model::presets::names() {
        let out = ran(wgllama(&["inspect", "--preset", name, "--format", "q4_0"])).ok();
        assert!(out.contains("\non a card        ") && !out.contains("not as it is"), "{out}");
    }
    ran(wgllama(&["inspect", "--preset", "llama-9b"])).fails(&["preset", "llama-9b", "llama-2-70b"]);
    assert_eq!(ran(wgllama(&["inspect", "--preset", "llama-7b", "file.gguf"])).code, Some(2));
}

#[test]
fn inspect_without_a_tokenizer_says_so() {
    let model = Model::new().without("tokenizer.json");
    let out = ran(wgllama(&["inspect", model.path()])).ok();
    let line = out.lines().find(|l| l.starts_with("tokenizer ")).unwrap();
    assert!(line.contains("none") && line.contains("tokenizer.json"), "{line}");
}

#[test]
fn inspect_real_models() {
    let Some(shared) = shared() else { return };
    let path = shared.join("models/stories260K-f32.gguf");
    let out = ran(wgllama(&["inspect", text(&path)])).ok();
    for part in ["GGUF version", "layers           5", "heads            8 of 8, 4 for keys and values"] {
        assert!(out.contains(part), "'{part}' is not in:\n{out}");
    }
    let Some(path) = smollm2() else { return };
    let out = ran(wgllama(&["inspect", text(&path)])).ok();
    // 30 layers, 3 heads of 64 values for keys and for values, two bytes each.
    for part in ["Q4_1", "layers           30", "23040 bytes a token", "smollm", "with chat template"] {
        assert!(out.contains(part), "'{part}' is not in:\n{out}");
    }
}

// ---- logits

/// What `logits` wrote: the ids and their logits.
fn read(path: &Path) -> (Vec<i32>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (logits, ids) = (file.tensor("logits").unwrap(), file.tensor("input_ids").unwrap());
    assert_eq!((logits.dtype(), ids.dtype()), (Dtype::F32, Dtype::I32));
    assert_eq!((logits.shape(), ids.shape()), (&[ids.shape()[0], VOCAB][..], &[ids.shape()[0]][..]));
    (bytemuck::pod_collect_to_vec(ids.data()), bytemuck::pod_collect_to_vec(logits.data()))
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(folder).unwrap().map(name).collect()
}

/// The ids that `tokenize` prints, fed in steps of any length to a model without a tokenizer, give
/// what the text gives.
#[test]
fn logits_are_the_same_from_ids_text_and_any_chunk() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let prompt = "The quick brown fox jumps over a dog";
    let ids = ran(wgllama(&["tokenize", model.path(), prompt, "--bos", "--ids"])).ok();
    let logits = |model: &Model, options: &[&str], name: &str| {
        let path = out.path().join(name);
        let args = [&["logits", model.path(), "--kv", "f32", "--out", text(&path)], options].concat();
        let ran = ran(on_device(&args));
        assert!(ran.err.contains("37 positions of 258 logits"), "{ran:?}");
        assert_eq!(ran.ok(), "");
        read(&path)
    };
    let by_prompt = logits(&model, &["--prompt", prompt], "prompt.safetensors");
    assert_eq!((by_prompt.0.len(), by_prompt.0[0]), (37, 256));

    let model = model.without("tokenizer.json");
    for chunk in ["1", "7", "32"] {
        let found = logits(&model, &["--tokens", ids.trim(), "--chunk", chunk], "tokens.safetensors");
        assert_eq!(found.0, by_prompt.0);
        assert_close(&format!("chunk {chunk}"), &found.1, &by_prompt.1, 1e-4);
    }
    // A file that was there is replaced, and nothing else is left beside it.
    let mut found = names(out.path());
    found.sort();
    assert_eq!(found, ["prompt.safetensors", "tokens.safetensors"]);
}

#[test]
fn logits_that_can_not_be_written_leave_nothing() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let to = |path: &Path| ran(on_device(&["logits", model.path(), "--tokens", "1,2", "--out", text(path)]));
    let path = out.path().join("nowhere/logits.safetensors");
    let failed = to(&path);
    failed.fails(&["nowhere"]);
    // It is about writing; nothing is wrong with any safetensors file.
    assert!(!failed.err.contains("not a valid"), "{}", failed.err);
    assert!(names(out.path()).is_empty());

    let folder = out.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    to(&folder).fails(&["folder"]);
    assert_eq!(names(out.path()), ["folder"]);
}

#[test]
fn logits_of_wrong_ids_leave_nothing() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let path = out.path().join("logits.safetensors");
    let with = |options: &[&str]| {
        ran(on_device(&[&["logits", model.path(), "--out", text(&path)], options].concat()))
    };
    with(&["--tokens", "1,258"]).fails(&["id 258", "vocabulary of 258"]);
    with(&["--tokens", "1,2,3", "--ctx", "2"]).fails(&["3 tokens", "room for 2"]);
    with(&["--tokens", "1", "--chunk", "0"]).fails(&["chunk"]);
    assert!(names(out.path()).is_empty());
}

// ---- tokenize

#[test]
fn tokenize_prints_ids_and_tokens() {
    let model = Model::new();
    let tokenize = |options: &[&str]| ran(wgllama(&[&["tokenize", model.path()], options].concat())).ok();
    let out = tokenize(&["Hi</s>"]);
    assert!(out.contains("      72  \"H\"\n     105  \"i\"\n"), "{out}");
    assert!(out.ends_with("6 tokens\n"), "special tokens stay text: {out}");
    assert_eq!(tokenize(&["Hi</s>", "--special", "--ids"]), "72,105,257\n");
    assert_eq!(tokenize(&["Hi", "--bos", "--ids"]), "256,72,105\n");
    let out = ran_with_stdin(wgllama(&["tokenize", model.path(), "-", "--ids"]), "\u{e9}".as_bytes());
    assert_eq!(out.ok(), "195,169\n");
    // The tokenizer alone will do.
    let model = model.without("config.json").without("model.safetensors");
    assert_eq!(ran(wgllama(&["tokenize", model.path(), "Hi", "--ids"])).ok(), "72,105\n");
    let model = model.with("tokenizer.json", "{ \"version\"");
    ran(wgllama(&["tokenize", model.path(), "Hi"])).fails(&["tokenizer.json"]);
}

// ---- usage, and who reads the output

#[test]
fn wrong_usage_ends_with_2() {
    let model = Model::new();
    let cases: [&[&str]; 10] = [
        &[],
        &["fly"],
        &["run"],
        &["run", model.path(), "Hello", "again"],
        &["run", model.path(), "Hello", "--warp"],
        &["run", model.path(), "Hello", "-n", "few"],
        &["run", model.path(), "Hello", "--kv", "f8"],
        &["logits", model.path(), "--out", "x"],
        &["logits", model.path(), "--tokens", "1,b", "--out", "x"],
        &["tokenize", model.path()],
    ];
    for args in cases {
        let ran = ran(wgllama(args));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("--help"), "{args:?}: {ran:?}");
    }
}

#[test]
fn help_and_version_end_with_0() {
    let help = ran(wgllama(&["--help"])).ok();
    for command in ["run", "devices", "inspect", "logits", "tokenize", "kernels"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        assert!(ran(wgllama(&[command, "--help"])).ok().contains("Usage: wgllama"));
    }
    assert!(ran(wgllama(&["--version"])).ok().contains(env!("CARGO_PKG_VERSION")));
}

/// Closes one of its outputs before anything is written.
fn with_closed(mut command: Command, stdout: bool) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if stdout {
        drop(child.stdout.take());
    } else {
        drop(child.stderr.take());
    }
    Ran::new(child.wait_with_output().unwrap())
}

/// A reader that has seen enough, such as `head`, is no failure.
#[test]
fn closed_output_ends_with_0() {
    let model = Model::new();
    let mut commands =
        vec![wgllama(&["inspect", model.path()]), wgllama(&["tokenize", model.path(), PROMPT])];
    if gpu().is_some() {
        commands.push(wgllama(&["devices"]));
        commands.push(on_device(&["run", model.path(), PROMPT, "-n", "200"]));
        commands.push(on_device(&["run", model.path(), PROMPT, "-n", "2", "--json"]));
    }
    for command in commands {
        let what = format!("{command:?}");
        let ran = with_closed(command, true);
        assert_eq!(ran.code, Some(0), "{what}: {ran:?}");
        assert!(!ran.err.contains("error"), "{what}: {ran:?}");
    }
}

/// Notes and figures that nobody reads don't stop the work.
#[test]
fn closed_standard_error_changes_nothing() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let path = out.path().join("logits.safetensors");
    let logits = ["logits", model.path(), "--tokens", "1,2", "--out", text(&path)];
    assert_eq!(with_closed(on_device(&logits), false).code, Some(0));
    assert_eq!(read(&path).0, [1, 2]);
    let args = ["run", model.path(), PROMPT, "-n", "4", "--temperature", "0"];
    let expected = ran(on_device(&args)).ok();
    assert_eq!(with_closed(on_device(&args), false).ok(), expected);
    assert_eq!(with_closed(wgllama(&["run", "no-such-model.gguf", "Hello"]), false).code, Some(1));
}

#[test]
fn bench_gives_every_figure_as_a_share_of_what_it_measured() {
    if gpu().is_none() {
        return;
    }
    let model = Model::new();
    let path = model.0.path().to_str().unwrap();
    let args = ["bench", path, "-p", "16", "-n", "4", "-d", "0,40", "-r", "1", "-o", "json"];
    let rows: Value = serde_json::from_str(&ran(on_device(&args)).ok()).unwrap();
    let tests: Vec<_> = rows.as_array().unwrap().iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp16", "tg4", "pp16 @ 40", "tg4 @ 40"]);
    for row in rows.as_array().unwrap() {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("tokens_per_second") > 0.0 && number("launches_per_token") > 0.0, "{row}");
        for figure in ["encode_seconds_per_token", "first_token_seconds", "device_bytes"] {
            assert!(number(figure) > 0.0, "{figure}: {row}");
        }
        assert!(row["scaled_from_layers"].is_null() && row.get("profile").is_none(), "{row}");
        for (figure, ceiling, share) in [
            ("bytes_per_second", "copy_bytes_per_second", "share_of_copy"),
            ("flops", "fma_flops", "share_of_fma"),
        ] {
            let expected = number(figure) / number(ceiling);
            assert!(expected > 0.0 && (number(share) / expected - 1.0).abs() < 1e-6, "{row}");
        }
    }
    for (format, lines) in [("jsonl", 1), ("csv", 2), ("md", 10)] {
        let args = ["bench", path, "-p", "0", "-n", "4", "-r", "1", "-o", format];
        let out = ran(on_device(&args)).ok();
        assert_eq!(out.lines().count(), lines, "{out}");
    }
}

#[test]
fn bench_of_random_weights_needs_no_file() {
    if gpu().is_none() {
        return;
    }
    let slice =
        ["bench", "--synthetic", "smollm2-135m:q8_0", "--layers", "1", "-p", "0", "-n", "2", "-r", "1"];
    let out = ran(on_device(&slice)).ok();
    assert!(out.contains("smollm2-135m:q8_0, scaled from 1 of 30 layers") && out.contains("tg2"), "{out}");
    let rows: Value =
        serde_json::from_str(&ran(on_device(&[&slice[..], &["-o", "json"]].concat())).ok()).unwrap();
    assert_eq!((&rows[0]["layers"], &rows[0]["scaled_from_layers"]), (&30.into(), &1.into()));
    // What the whole model has: 30 layers of six to eight launches, and three more and the two
    // that choose; every weight in 8.5 bits.
    let launches = rows[0]["launches_per_token"].as_f64().unwrap();
    assert!((launches - 5.0) % 30.0 == 0.0 && launches > 180.0, "{rows}");
    assert!(rows[0]["device_bytes"].as_f64().unwrap() > 134.5e6 * 8.5 / 8.0, "{rows}");
}

/// A table of kernels and a drawing that names them, for one sequence and for several.
#[test]
fn bench_profiles_and_plots_the_kernels_of_a_step() {
    let Some(gpu) = gpu() else { return };
    let model = Model::new();
    let plot = model.file("roofline.svg");
    let args = ["bench", model.path(), "-p", "0", "-n", "2", "-b", "1,3", "-r", "1", "--plot", text(&plot)];
    if !gpu.caps().timestamps {
        // The adapter may have them, and the tests' device not.
        ran(on_device(&[&args[..], &["--caps", "baseline"]].concat())).fails(&["profile", "timestamps"]);
        return;
    }
    let rows: Value =
        serde_json::from_str(&ran(on_device(&[&args[..], &["-o", "json"]].concat())).ok()).unwrap();
    let tests: Vec<_> = rows.as_array().unwrap().iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["tg2", "tg2 x3"]);
    for row in rows.as_array().unwrap() {
        let kernels = row["profile"].as_array().unwrap();
        let sum = |key: &str| kernels.iter().map(|k| k[key].as_f64().unwrap()).sum::<f64>();
        assert!((sum("share_of_step") - 1.0).abs() < 1e-6, "{row}");
        let sequences = row["sequences"].as_f64().unwrap();
        assert_eq!(sum("launches"), row["launches_per_token"].as_f64().unwrap() * sequences);
        for name in ["embed[", "rms_norm[", "gemv", "rope_kv[", "attention"] {
            let named = |k: &&Value| k["kernel"].as_str().unwrap().starts_with(name);
            let kernel = kernels.iter().find(named).unwrap_or_else(|| panic!("{name}: {row}"));
            assert!(kernel["seconds"].as_f64().unwrap() > 0.0, "{kernel}");
            assert!(kernel["share_of_roof"].as_f64().unwrap() > 0.0, "{kernel}");
        }
    }
    let svg = std::fs::read_to_string(&plot).unwrap();
    for word in ["<svg", "</svg>", "logits", "attn", "tg2 x3", "GFLOP/s"] {
        assert!(svg.contains(word), "{word} is not in {svg}");
    }
    let out = ran(on_device(&[&args[..], &["-o", "csv"]].concat())).ok();
    assert_eq!(out.split("\n\n").count(), 2, "{out}");
    assert!(out.contains("tg2 x3,\"gemv"), "{out}");
}

#[test]
fn bench_refuses_what_it_does_not_know() {
    let bench = |args: &[&str]| ran(on_device(&[&["bench"], args].concat()));
    bench(&["--synthetic", "llama-9b:f16"]).fails(&["llama-9b", "llama-2-70b"]);
    bench(&["--synthetic", "llama-7b"]).fails(&["NAME:FORMAT"]);
    bench(&["--synthetic", "llama-7b:q9"]).fails(&["q9", "q4_0"]);
    bench(&["--synthetic", "llama-7b:f16", "--layers", "33"]).fails(&["1 to 32", "33"]);
    bench(&["-r", "0", "nothing"]).fails(&["repeat"]);
    bench(&["-b", "1,0", "nothing"]).fails(&["batch"]);
    bench(&["--plot", "no/such/folder.svg", "nothing"]).fails(&["no/such/folder.svg"]);
}

#[test]
fn kernels_of_a_model_are_listed_and_written_without_a_gpu() {
    let kernels = |args: &[&str]| {
        let mut command = wgllama(&[&["kernels"], args].concat());
        // No driver is asked.
        command.env("VK_DRIVER_FILES", "/none").env("VK_ICD_FILENAMES", "/none");
        ran(command)
    };
    let folder = tempfile::tempdir().unwrap();
    let dump = text(folder.path());
    let out = kernels(&["--synthetic", "llama-2-7b:q4_0", "--caps", "amd", "--dump", dump]).ok();
    assert!(out.starts_with("decode: ") && out.contains("\nprompt of 512 tokens: "), "{out}");
    // Of the 32 layers' matrices two are added to the residual.
    assert!(
        out.lines()
            .any(|l| l.trim_start().starts_with("64 ") && l.contains("gemv_staged[subgroup,q4_0,add,")),
        "{out}"
    );
    let listed: BTreeSet<&str> =
        out.lines().filter(|l| l.ends_with(']')).filter_map(|l| l.split_whitespace().last()).collect();
    let written: BTreeSet<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(source.contains("fn main("), "{source}");
            source.lines().next().unwrap().trim_start_matches("// ").to_string()
        })
        .collect();
    assert_eq!(listed, written.iter().map(String::as_str).collect());

    let model = Model::new();
    assert!(kernels(&[model.path(), "--caps", "lavapipe"]).ok().contains("gemv_lanes["));
    let all = kernels(&["--caps", "baseline"]).ok();
    assert!(all.lines().all(|l| l.ends_with(']') && !l.contains("subgroup")), "{all}");
    assert!(all.contains("\nattention[") && all.contains("\ngemm["), "{all}");
    kernels(&["--synthetic", "llama-9b:f16"]).fails(&["llama-9b", "llama-2-70b"]);
    kernels(&["--synthetic", "llama-2-7b:q4_0", "--dump", "/dev/null/x"]).fails(&["/dev/null/x"]);
}

// ---- perplexity

#[test]
fn perplexity_is_that_of_the_logits() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let (file, logits) = (out.path().join("text.txt"), out.path().join("logits.safetensors"));
    std::fs::write(&file, "The quick brown fox jumps over a dog").unwrap();
    let prompt = ["logits", model.path(), "--kv", "f32", "--prompt", "The quick brown fox jumps over a dog"];
    ran(on_device(&[&prompt[..], &["--out", text(&logits)]].concat())).ok();
    let (ids, logits_found) = read(&logits);
    let losses: Vec<f64> = logits_found
        .chunks_exact(258)
        .zip(&ids[1..])
        .map(|(row, id)| {
            let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            sum.ln() - f64::from(row[*id as usize])
        })
        .collect();
    let mean = |losses: &[f64]| (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    let perplexity = |options: &[&str]| {
        let args = ["perplexity", model.path(), "--kv", "f32", "--file", text(&file)];
        json(on_device(&[&args[..], options].concat()))
    };
    let one = perplexity(&["--one-window"]);
    assert_eq!(one["tokens"], 36);
    assert!((one["perplexity"].as_f64().unwrap() / mean(&losses) - 1.0).abs() < 1e-4, "{one}");
    // Only the second half of the first and only window.
    let halves = perplexity(&["--ctx", "30"]);
    assert_eq!((halves["tokens"].as_u64(), halves["windows"].as_u64()), (Some(14), Some(1)));
    assert!((halves["perplexity"].as_f64().unwrap() / mean(&losses[15..29]) - 1.0).abs() < 1e-4, "{halves}");
    let sliding = perplexity(&["--ctx", "16", "--stride", "8"]);
    assert_eq!((sliding["tokens"].as_u64(), sliding["windows"].as_u64()), (Some(36), Some(4)));

    let kl =
        |reference: &Path| on_device(&["perplexity", model.path(), "--kv", "f32", "--kl", text(reference)]);
    let same = json(kl(&logits));
    assert!(same["kl"].as_f64().unwrap().abs() < 1e-9 && same["agreement"] == 1.0, "{same}");
    assert_eq!(same["positions"], 37);
    std::fs::write(&file, "not a tensor").unwrap();
    ran(kl(&file)).fails(&["text.txt", "no safetensors file"]);
    ran(kl(&out.path().join("nothing"))).fails(&["nothing"]);
}

#[test]
fn perplexity_refuses_what_makes_no_windows() {
    if gpu().is_none() {
        return;
    }
    let (model, out) = (Model::new(), tempfile::tempdir().unwrap());
    let file = out.path().join("text.txt");
    let with = |bytes: &[u8], options: &[&str]| {
        std::fs::write(&file, bytes).unwrap();
        ran(on_device(&[&["perplexity", model.path(), "--file", text(&file)], options].concat()))
    };
    with(b"short", &["--ctx", "64"]).fails(&["64 or more tokens", "found"]);
    with(b"long enough", &["--ctx", "8", "--stride", "9"]).fails(&["stride", "8 tokens", "found 9"]);
    with(b"\xff\xfe", &[]).fails(&["not UTF-8"]);
    ran(on_device(&["perplexity", model.path(), "--file", "missing.txt"])).fails(&["missing.txt"]);
}

// ---- convert and quantize

#[test]
fn convert_writes_a_file_or_nothing() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let model = Model::new();
    let to =
        |input: &str, options: &[&str]| ran(wgllama(&[&["convert", input, text(&path)], options].concat()));
    to("missing", &[]).fails(&["missing"]);
    to(model.path(), &["--format", "f8_e4m3"]).fails(&["f8_e4m3 in GGUF"]);
    assert_eq!(names(out.path()), [""; 0]);
    to(model.path(), &[]).ok();
    let bytes = std::fs::read(&path).unwrap();
    ran(wgllama(&["quantize", model.path(), text(&path), "--format", "q8_0"])).ok();
    assert!(std::fs::read(&path).unwrap().len() < bytes.len());
    assert_eq!(names(out.path()), ["model.gguf"]);
    let tokens = |model: &str| ran(wgllama(&["tokenize", model, "Hello, world"])).ok();
    assert_eq!(tokens(text(&path)), tokens(model.path()));
}

#[test]
fn quantize_writes_a_file_or_nothing() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("small.gguf");
    let to =
        |input: &str, options: &[&str]| ran(wgllama(&[&["quantize", input, text(&path)], options].concat()));
    to("missing.gguf", &["--format", "q8_0"]).fails(&["missing.gguf"]);
    let bad = out.path().join("bad.gguf");
    std::fs::write(&bad, "GGUF and no more").unwrap();
    to(text(&bad), &["--format", "q8_0"]).fails(&["bad.gguf"]);
    assert_eq!(to(text(&bad), &["--format", "q9_9"]).code, Some(2));
    assert_eq!(names(out.path()), ["bad.gguf"]);

    let (Some(shared), true) = (shared(), gpu().is_some()) else { return };
    let input = shared.join("models/quants/tiny-F32.gguf");
    to(text(&input), &["--format", "q4_k"]).ok();
    let described = ran(wgllama(&["inspect", text(&path)])).ok();
    assert!(described.contains("Q4_K") && described.contains("Q6_K"), "{described}");
    let before = std::fs::read(&path).unwrap();
    // What is there stays when the next run fails.
    to(text(&path), &["--format", "q8_0"]).fails(&["--requantize"]);
    assert_eq!((std::fs::read(&path).unwrap(), names(out.path()).len()), (before, 2));
    let logits = out.path().join("logits.safetensors");
    ran(on_device(&["logits", text(&path), "--tokens", "1,2,3", "--out", text(&logits)])).ok();
    ran(on_device(&[
        "logits",
        text(&input),
        "--quantize",
        "q4_k",
        "--tokens",
        "1,2,3",
        "--out",
        text(&logits),
    ]))
    .ok();
}
