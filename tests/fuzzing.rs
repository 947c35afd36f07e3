//! The short run of the fuzz targets: every seed as it is, and changes of the seeds that are the same
//! in every run. `fuzz/README.md` says how to look further with `cargo fuzz`.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Changed seeds that a target is given at most, and how long it goes on with them.
const CHANGES: usize = 2000;
const TIME: Duration = Duration::from_secs(4);

/// What no input may take. Far more than any does: only a reader that hangs gets there.
const LONGEST: Duration = Duration::from_secs(60);

/// The seeds of a target with their names, in order.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut seeds: Vec<_> =
        files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{} has no seeds", folder.display());
    seeds
}

/// Changes a file as those who damage files do: bits, lengths, pieces that are gone, doubled or of
/// another file, and structures that never end.
fn change(random: &mut ChaCha8Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let mut below = |n: usize| random.next_u32() as usize % n.max(1);
    let at = below(bytes.len());
    let end = (at + 1 + below(64)).min(bytes.len());
    match below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
        1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'['][below(8)],
        2 => bytes.truncate(at),
        3 => {
            bytes.drain(at..end);
        }
        4 => {
            let piece = bytes[at..end].to_vec();
            (0..=below(20)).for_each(|_| drop(bytes.splice(at..at, piece.iter().copied())));
        }
        5 => {
            let from = below(other.len());
            let piece = other[from..(from + 1 + below(64)).min(other.len())].to_vec();
            bytes.splice(at..end, piece);
        }
        6 => {
            let huge = [u64::MAX, 1 << 63, 1 << 40, u64::from(u32::MAX), 1 << 24, 0][below(6)].to_le_bytes();
            let width = [4, 8][below(2)];
            bytes.iter_mut().skip(at).zip(&huge[..width]).for_each(|(to, from)| *to = *from);
        }
        7 => {
            // A number of the text becomes another.
            let digits = |b: &u8| b.is_ascii_digit();
            if let Some(start) = bytes.iter().skip(at).position(digits).map(|found| at + found) {
                let len = bytes[start..].iter().take_while(|b| digits(b)).count();
                let numbers =
                    ["0", "-1", "1e400", "4294967296", "18446744073709551615", "4096", "16777216", "null"];
                bytes.splice(start..start + len, numbers[below(8)].bytes());
            }
        }
        _ => {
            let (open, close) =
                [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("{% if x %}", "{% endif %}")][below(4)];
            let depth = 1 + below(200);
            bytes.splice(at..at, [open.repeat(depth), close.repeat(depth)].concat().into_bytes());
        }
    }
}

fn short_run(name: &'static str) {
    let (sender, receiver) = channel();
    let worker = std::thread::spawn(move || {
        let seeds = seeds(name);
        let run = |what: String, bytes: &[u8]| {
            sender.send((what, bytes.to_vec())).unwrap();
            targets::run(name, bytes);
        };
        for (path, bytes) in &seeds {
            run(path.clone(), bytes);
        }
        let start = Instant::now();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for number in 0..CHANGES {
            let mut pick = || &seeds[random.next_u32() as usize % seeds.len()];
            let ((path, bytes), (_, other)) = (pick(), pick());
            let mut bytes = bytes.clone();
            (0..=random.next_u32() % 4).for_each(|_| change(&mut random, &mut bytes, other));
            run(format!("change {number}, of {path}"), &bytes);
            if start.elapsed() > TIME {
                break;
            }
        }
    });
    let mut last = (String::new(), Vec::new());
    // Tells of the last input, and keeps it, to be run alone or to become a seed.
    let about = |(what, bytes): &(String, Vec<u8>)| {
        let path = std::env::temp_dir().join(format!("wgllama-fuzzing-{name}"));
        std::fs::write(&path, bytes).unwrap();
        format!("{what}; the input is in {}", path.display())
    };
    loop {
        match receiver.recv_timeout(LONGEST) {
            Ok(what) => last = what,
            Err(RecvTimeoutError::Timeout) => panic!("{name} hangs in {}", about(&last)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(worker.join().is_ok(), "{name} failed in {}", about(&last));
}

#[test]
fn safetensors() {
    short_run("safetensors");
}

#[test]
fn gguf() {
    short_run("gguf");
}

#[test]
fn config() {
    short_run("config");
}

#[test]
fn tokenizer() {
    short_run("tokenizer");
}

#[test]
fn template() {
    short_run("template");
}

#[test]
fn folder() {
    short_run("folder");
}

/// Files of a megabyte that hold as many things as fit, where the multiple of the size is what counts.
#[test]
fn large_files_keep_the_bounds() {
    let list = |what: &dyn Fn(usize) -> String, n: usize| (0..n).map(what).collect::<Vec<_>>().join(",");
    let header = |text: String| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |i: usize| format!("\"{i:x}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let added = |i: usize| {
        format!(
            "{{\"id\":{},\"content\":\"!{i:x}\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\
             \"normalized\":true,\"special\":true}}",
            i + 1
        )
    };
    let model = |vocab: String| format!("\"model\":{{\"type\":\"BPE\",\"vocab\":{{{vocab}}},\"merges\":[]}}");
    let gguf = |tensors: u64, values: u64, rest: Vec<u8>| {
        [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &values.to_le_bytes(), &rest].concat()
    };
    let strings = |n: usize| -> Vec<u8> {
        let tokens = (0..n).flat_map(|i| string(&format!("{i:x}")));
        let key = [
            string("tokenizer.ggml.tokens"),
            vec![9, 0, 0, 0, 8, 0, 0, 0],
            (n as u64).to_le_bytes().to_vec(),
        ];
        let model = [string("tokenizer.ggml.model"), vec![8, 0, 0, 0], string("gpt2")].concat();
        key.concat().into_iter().chain(tokens).chain(model).collect()
    };
    // Runs of one letter: every split of every token is a merge.
    let runs = |letters: u32, longest: usize| -> Vec<u8> {
        let letters = (0..letters).filter_map(|i| char::from_u32(0x4e00 + i)).map(String::from);
        let tokens: Vec<String> = letters.flat_map(|c| (1..=longest).map(move |n| c.repeat(n))).collect();
        let (n, count) = (tokens.len(), (tokens.len() as u64).to_le_bytes());
        let key = |name: &str, kind: u8| {
            [string(&format!("tokenizer.ggml.{name}")), vec![9, 0, 0, 0, kind, 0, 0, 0], count.to_vec()]
                .concat()
        };
        let model = [string("tokenizer.ggml.model"), vec![8, 0, 0, 0], string("llama")].concat();
        let tokens: Vec<u8> = tokens.iter().flat_map(|token| string(token)).collect();
        let scores = vec![0; 4 * n];
        [model, key("tokens", 8), tokens, key("scores", 6), scores].concat()
    };
    let keys = (0..40_000).flat_map(|i| [string(&format!("{i:x}")), vec![0, 0, 0, 0, 7]].concat()).collect();
    let scalars = |i: usize| {
        let place = [vec![0; 4], vec![0; 4], (i as u64 * 32).to_le_bytes().to_vec()].concat();
        [string(&format!("{i:x}")), place].concat()
    };
    let scalars: Vec<u8> = (0..20_000).flat_map(scalars).chain(vec![0; 20_001 * 32]).collect();
    let cases: [(&str, Vec<u8>); 26] = [
        ("safetensors", header(format!("{{{}}}", list(&tensor, 20_000)))),
        (
            "safetensors",
            header(format!(
                "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[0,0]}}}}",
                list(&|_| "0".into(), 500_000)
            )),
        ),
        ("gguf", gguf(0, 2, strings(80_000))),
        ("gguf", gguf(0, 3, runs(400, 50))),
        ("gguf", gguf(0, 40_000, keys)),
        ("gguf", gguf(20_000, 0, scalars)),
        (
            "config",
            format!(
                "{{\"model_type\":\"llama\",\"text_config\":{{\"a\":[{}]}}}}",
                list(&|_| "0".into(), 500_000)
            )
            .into(),
        ),
        (
            "config",
            format!("{{\"weight_map\":{{{}}}}}", list(&|i| format!("\"{i:x}\":\"a\""), 80_000)).into(),
        ),
        ("config", format!("{{\"a\":[{}]}}", list(&|_| "{}".into(), 300_000)).into()),
        ("tokenizer", format!("{{{}}}", model(list(&|i| format!("\"{i:x}\":{i}"), 80_000))).into()),
        (
            "tokenizer",
            format!("{{\"added_tokens\":[{}],{}}}", list(&added, 8_000), model("\"a\":0".into())).into(),
        ),
        (
            "tokenizer",
            format!("{{\"a\":[{}],{}}}", list(&|_| "0".into(), 500_000), model("\"a\":0".into())).into(),
        ),
        (
            "config",
            format!(
                "{{\"model_type\":\"llama\",\"text_config\":{{\"a\":[{}]}}}}",
                list(&|_| "[0]".into(), 270_000)
            )
            .into(),
        ),
        (
            "tokenizer",
            format!("{{\"a\":[{}],{}}}", list(&|_| "[0]".into(), 270_000), model("\"a\":0".into())).into(),
        ),
        (
            "tokenizer",
            format!(
                "{{\"added_tokens\":[{}],{}}}",
                list(&|i| added(i).replace("!", &"y".repeat(500)), 90),
                model("\"a\":0".into())
            )
            .into(),
        ),
        ("template", "{{ 1 }}".repeat(37_000).into()),
        // Lists that are not there until somebody makes text of them, or of what they hold.
        ("template", "{{ [1] * 1 * 100000000 }}".into()),
        ("template", "{{ [1] * 100000000000 }}".into()),
        ("template", "{{ '' ~ [1] * 100000000000 }}".into()),
        ("template", "{{ ([1] * 100000000000) | upper }}".into()),
        ("template", "{{ '%s' | format([1] * 100000000000) }}".into()),
        ("template", "{{ ''.join([[1] * 100000000000]) }}".into()),
        ("template", "{{ raise_exception([1] * 100000000000) }}".into()),
        (
            "template",
            format!("{{% set s = 'x' * 9000000 %}}{{{{ [{}] | upper }}}}", "s,".repeat(1000)).into(),
        ),
        (
            "template",
            "{% macro m(a, n) %}{{ m(a + a, n - 1) if n > 0 else '' ~ a }}{% endmacro %}{{ m([1], 60) }}"
                .into(),
        ),
        (
            "folder",
            [
                b"=== config.json\n{}\n=== model.safetensors\n",
                &header(format!("{{{}}}", list(&tensor, 20_000)))[..],
            ]
            .concat(),
        ),
    ];
    for (name, bytes) in cases {
        let peak = targets::run(name, &bytes);
        println!("{name}: {} times {} bytes", peak / bytes.len(), bytes.len());
    }
}

#[test]
fn every_target_has_a_short_run() {
    let source = include_str!("fuzzing.rs");
    for target in targets::TARGETS {
        assert!(source.contains(&format!("short_run(\"{}\")", target.name)), "{} has none", target.name);
    }
}
