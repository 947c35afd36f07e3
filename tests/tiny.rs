//! The project's own tiny model, made from a seed: what it writes is pinned, on the CPU
//! reference and on the GPU, so that the suite means something without any other model.

mod support;

use support::tiny::Tiny;
use support::{assert_close, gpu, greedy, load, session, session_options};
use wgllama::graph::Batch;
use wgllama::graph::reference::Reference;
use wgllama::{KvFormat, ModelFiles};

const PROMPT: &str = "A tiny model, 1 2 3 \u{e9}";

/// What the default tiny model goes on with after `PROMPT`, as ids.
const GREEDY: [u32; 24] = [
    84, 188, 157, 188, 89, 190, 173, 183, 137, 184, 201, 200, 137, 190, 173, 137, 190, 53, 133, 127, 225,
    190, 173, 183,
];

/// Logits of ids 0 to 7 after `PROMPT`.
const LOGITS: [f32; 8] =
    [0.42764884, 0.8023567, -0.9952408, -1.3241506, -0.4200409, 0.10264012, 0.49497962, 1.2375402];

fn model() -> (tempfile::TempDir, ModelFiles) {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    (folder, files)
}

fn prompt_ids(files: &ModelFiles) -> Vec<u32> {
    files.tokenizer().unwrap().encode_prompt(PROMPT, wgllama::Specials::Text).unwrap()
}

/// Greedy ids of the reference, and the logits after the prompt.
fn reference(files: &ModelFiles, ids: &[u32], n: usize) -> (Vec<u32>, Vec<f32>) {
    let mut reference = Reference::new(files.graph(), files, KvFormat::F32).unwrap();
    let mut logits = reference.logits(&Batch::sequence(ids, 0, 0)).unwrap();
    let first = logits.clone();
    let mut found = Vec::new();
    for i in 0..n {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        found.push(best);
        logits = reference.logits(&Batch::sequence(&[best], ids.len() + i, 0)).unwrap();
    }
    (found, first)
}

#[test]
fn the_reference_writes_the_pinned_text() {
    let (_folder, files) = model();
    let ids = prompt_ids(&files);
    assert_eq!(ids.len(), PROMPT.len() + 1, "one token a byte, and the first");
    let (found, logits) = reference(&files, &ids, GREEDY.len());
    assert_eq!(found, GREEDY);
    assert_close("logits", &logits[..8], &LOGITS, 1e-5);
}

#[test]
fn the_gpu_writes_the_pinned_text() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let model = load(&gpu, folder.path());
    let mut session = session(&model, KvFormat::F32, 128, 128);
    session.prefill(&ids).unwrap();
    assert_close("logits", &session.logits().unwrap()[..8], &LOGITS, 1e-4);
    session.truncate(0);
    assert_eq!(greedy(&mut session, &ids, GREEDY.len()), GREEDY);
}

#[test]
fn writing_the_model_twice_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Tiny::default().write(a.path()).unwrap();
    Tiny::default().write(b.path()).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert_eq!(std::fs::read(a.path().join(name)).unwrap(), std::fs::read(b.path().join(name)).unwrap());
    }
}

/// Shapes that models have and powers of two are not: any ratio of heads, any head_dim.
#[test]
fn odd_shapes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let shapes = [
        Tiny {
            heads: 5,
            kv_heads: 1,
            head_dim: 8,
            hidden: 40,
            intermediate: 44,
            tied: true,
            ..Tiny::default()
        },
        Tiny { heads: 3, kv_heads: 3, head_dim: 20, biases: false, layers: 1, ..Tiny::default() },
        Tiny {
            heads: 8,
            kv_heads: 1,
            head_dim: 80,
            hidden: 33,
            intermediate: 37,
            layers: 1,
            ..Tiny::default()
        },
        Tiny { heads: 24, kv_heads: 2, head_dim: 6, hidden: 96, layers: 1, ..Tiny::default() },
        Tiny { heads: 2, kv_heads: 2, head_dim: 256, hidden: 64, layers: 1, ..Tiny::default() },
    ];
    let ids: Vec<u32> = (0..70).map(|i| (i * 37 % 256) as u32).collect();
    for (i, shape) in shapes.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        shape.write(folder.path()).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        for kv in KvFormat::ALL {
            let mut reference = Reference::new(files.graph(), &files, kv).unwrap();
            let expected = reference.logits(&Batch::sequence(&ids, 0, 0).with_all_outputs()).unwrap();
            let model = load(&gpu, folder.path());
            let found = session(&model, kv, 128, 33).prefill_all(&ids).unwrap();
            // Both round to f16 or to steps, now and then to different neighbours; those of q4_0 are wide.
            let tolerance = match kv {
                KvFormat::F32 => 1e-4,
                KvFormat::F16 | KvFormat::Q8_0 => 2e-3,
                KvFormat::Q4_0 => 3e-2,
            };
            assert_close(&format!("shape {i}, {kv}"), &found, &expected, tolerance);
        }
    }
}

#[test]
fn scratch_memory_does_not_reach_the_result() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let model = load(&gpu, folder.path());
    let mut session = session(&model, KvFormat::F32, 128, 16);
    let first = greedy(&mut session, &ids, 20);
    session.poison(f32::NAN.to_bits());
    session.truncate(0);
    assert_eq!(greedy(&mut session, &ids, 20), first);
}

#[test]
fn a_truncated_session_goes_on_as_a_fresh_one() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let ids: Vec<u32> = prompt_ids(&files).into_iter().cycle().take(150).collect();
    let model = load(&gpu, folder.path());
    let fresh = greedy(&mut session(&model, KvFormat::F32, 256, 64), &ids[..70], 8);
    let mut used = session(&model, KvFormat::F32, 256, 64);
    used.prefill(&ids).unwrap();
    let logits = used.logits().unwrap().to_vec();
    used.truncate(150);
    assert_eq!(used.logits().unwrap(), logits, "nothing was cut");
    used.truncate(66);
    assert!(used.logits().is_err());
    assert_eq!(greedy(&mut used, &ids[66..70], 8), fresh);
}

/// The tiny model with other keys in its configuration.
fn configured(keys: &[(&str, serde_json::Value)]) -> (tempfile::TempDir, ModelFiles) {
    let (folder, _) = model();
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in keys {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    (folder, files)
}

/// Layers with windows have pages for no more than the window and a step, whatever the context; texts go
/// on as if they had them all, also after they were cut where those pages were used again.
#[test]
fn windows_keep_only_their_pages() {
    let Some(gpu) = gpu() else { return };
    let types: Vec<_> = ["sliding_attention", "full_attention"].into();
    let (folder, files) = configured(&[
        ("model_type", "mistral".into()),
        ("sliding_window", 20.into()),
        ("layer_types", types.into()),
        ("max_position_embeddings", 4096.into()),
    ]);
    let model = load(&gpu, folder.path());
    let ids: Vec<u32> = (0..900).map(|i| 3 + i * 31 % 200).collect();
    for kv in [KvFormat::F32, KvFormat::Q8_0] {
        let tolerance = if kv == KvFormat::F32 { 1e-4 } else { 4e-3 };
        let mut reference = Reference::new(files.graph(), &files, kv).unwrap();
        let all = reference.logits(&Batch::sequence(&ids, 0, 0).with_all_outputs()).unwrap();
        let vocab = files.config().vocab_size;
        let expected = |n: usize| &all[(n - 1) * vocab..][..vocab];
        let mut short = session(&model, kv, 1000, 32);
        let long = session(&model, kv, 4000, 32);
        // The layer that sees all grows; the other has 20 + 32 + 64 positions in three pages.
        let pages = |n: usize| n.div_ceil(64) as u64;
        assert_eq!(
            long.cache_bytes() - short.cache_bytes(),
            (pages(4000) - pages(1000)) * (short.cache_bytes() / (pages(1000) + 3)),
        );
        short.prefill(&ids[..700]).unwrap();
        assert_close("prompt", short.logits().unwrap(), expected(700), tolerance);
        for id in &ids[700..800] {
            short.prefill(&[*id]).unwrap();
        }
        assert_close("one by one", short.logits().unwrap(), expected(800), tolerance);
        // Still there; then overwritten; then from the beginning.
        for cut in [790, 300, 40, 0] {
            short.truncate(cut);
            short.prefill(&ids[cut..cut + 9]).unwrap();
            assert_close(&format!("cut to {cut}"), short.logits().unwrap(), expected(cut + 9), tolerance);
        }
        short.truncate(0);
        let mut group = model.group(&session_options(kv, 1000, 32), 2).unwrap();
        group.prefill(1, &ids[..500]).unwrap();
        group.prefill(0, &ids[..9]).unwrap();
        group.truncate(1, 200);
        group.feed_each(&[ids[9], ids[200]]).unwrap();
        assert_close("group", group.logits(0).unwrap(), expected(10), tolerance);
        assert_close("group, cut", group.logits(1).unwrap(), expected(201), tolerance);
    }
}

/// A text that grows beyond the length of LongRoPE's short factors is turned anew, by the long ones: fed
/// in one piece, token by token, and written by the model itself.
#[test]
fn growing_texts_change_their_rotations() {
    let Some(gpu) = gpu() else { return };
    let factors = |first: f64| (0..5).map(|i| first + f64::from(i)).collect::<Vec<_>>();
    let (folder, files) = configured(&[
        (
            "rope_parameters",
            serde_json::json!({
                "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
                "short_factor": factors(1.0), "long_factor": factors(3.0),
            }),
        ),
        ("max_position_embeddings", 256.into()),
    ]);
    let model = load(&gpu, folder.path());
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 31 % 200).collect();
    let expected = |n: usize| {
        let mut reference = Reference::new(files.graph(), &files, KvFormat::F32).unwrap().in_context(n);
        reference.logits(&Batch::sequence(&ids[..n], 0, 0)).unwrap()
    };
    assert!(support::max_error(&expected(24), &expected(25)).0 > 0.1, "the factors matter");
    let mut fed = session(&model, KvFormat::F32, 256, 16);
    for n in [20, 23, 24, 25, 26, 40] {
        fed.prefill(&ids[fed.ids().len()..n]).unwrap();
        assert_close(&format!("{n} tokens"), fed.logits().unwrap(), &expected(n), 1e-4);
    }
    fed.truncate(10);
    fed.prefill(&ids[10..12]).unwrap();
    assert_close("short again", fed.logits().unwrap(), &expected(12), 1e-4);

    // What it writes is what it would write if each token were fed to a new session.
    let mut written = ids[..10].to_vec();
    for _ in 0..30 {
        let mut fresh = session(&model, KvFormat::F32, 256, 16);
        written.extend(greedy(&mut fresh, &written, 1));
    }
    for ahead in [0, 1, 4] {
        let options =
            wgllama::SessionOptions { ahead: Some(ahead), ..session_options(KvFormat::F32, 256, 16) };
        let mut session = model.session(&options).unwrap();
        let sampling = wgllama::Sampling::default().max_tokens(30);
        let stream = session.generate_ids(&ids[..10], &sampling).unwrap();
        let found: Vec<u32> = stream.filter_map(|piece| piece.unwrap().id).collect();
        assert_eq!(found, written[10..10 + found.len()], "{ahead} steps ahead");
        assert!(found.len() > 16, "the boundary was crossed");
    }
}

#[test]
fn checked_and_unchecked_shaders_agree() {
    let Some(gpu) = gpu() else { return };
    let options = wgllama::ContextOptions { checked: true, ..support::device() };
    let checked = wgllama::Context::new(&options).unwrap();
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let logits = [&gpu, &checked].map(|context| {
        session(&load(context, folder.path()), KvFormat::F32, 128, 16).prefill_all(&ids).unwrap()
    });
    assert_eq!(logits[0], logits[1]);
}

/// Pipelines are kept where they are asked for; what cannot be used is made anew.
#[test]
fn kept_pipelines_change_nothing() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let kept = folder.path().join("not there yet/pipelines");
    let options = wgllama::ContextOptions { pipeline_cache: Some(kept.clone()), ..support::device() };
    for start in 0..3 {
        let context = wgllama::Context::new(&options).unwrap();
        let mut session = session(&load(&context, folder.path()), KvFormat::F32, 128, 128);
        assert_eq!(greedy(&mut session, &ids, GREEDY.len()), GREEDY, "start {start}");
        let Ok(entries) = std::fs::read_dir(&kept) else {
            let baseline = std::env::var_os("WGLLAMA_TEST_BASELINE").is_some();
            assert!(gpu.adapter().backend != "vulkan" || baseline, "nothing was kept");
            return;
        };
        let files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        if start == 1 {
            let mut bytes = std::fs::read(&files[0]).unwrap();
            bytes.iter_mut().skip(40).for_each(|b| *b ^= 0x55);
            bytes.truncate(bytes.len() - 3);
            std::fs::write(&files[0], bytes).unwrap();
        }
    }
}

#[test]
fn the_least_device_gives_the_same_text() {
    if gpu().is_none() {
        return;
    }
    let options = wgllama::ContextOptions { baseline: true, ..support::device() };
    let least = wgllama::Context::new(&options).unwrap();
    assert_eq!(least.caps().max_storage_binding, 128 << 20);
    assert_eq!(least.caps().subgroup, None);
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let mut session = session(&load(&least, folder.path()), KvFormat::F32, 128, 128);
    assert_eq!(greedy(&mut session, &ids, GREEDY.len()), GREEDY);
}

#[test]
fn a_lost_device_is_an_error_and_another_can_be_opened() {
    if gpu().is_none() {
        return;
    }
    let options = support::device();
    let doomed = wgllama::Context::new(&options).unwrap();
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let mut session = session(&load(&doomed, folder.path()), KvFormat::F32, 128, 128);
    session.prefill(&ids).unwrap();
    doomed.destroy();
    let error = session.prefill(&ids).unwrap_err();
    assert!(matches!(error, wgllama::Error::DeviceLost { .. }), "{error}");
    let again = wgllama::Context::new(&options).unwrap();
    load(&again, folder.path());
}

#[test]
fn a_batch_that_points_outside_is_refused() {
    let token = |id, position, sequence| wgllama::graph::Token { id, position, sequence };
    let batch = |t, outputs| Batch { tokens: vec![t], outputs };
    assert!(batch(token(9, 63, 1), vec![0]).check(10, 64, 2).is_ok());
    let wrong = [
        (batch(token(10, 0, 0), vec![]), "id 10"),
        (batch(token(0, 64, 0), vec![]), "position 64"),
        (batch(token(0, 0, 2), vec![]), "sequence 2"),
        (batch(token(0, 0, 0), vec![1]), "output 1"),
    ];
    for (batch, named) in wrong {
        let error = batch.check(10, 64, 2).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

/// Sequences of any lengths that take their steps together write what each writes alone.
#[test]
fn a_group_writes_what_its_sequences_write_alone() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let all: Vec<u32> = prompt_ids(&files).into_iter().cycle().take(90).collect();
    let model = load(&gpu, folder.path());
    let options = wgllama::SessionOptions {
        context: Some(128),
        kv: KvFormat::F32,
        chunk: Some(16),
        ..Default::default()
    };
    let mut alone = model.session(&options).unwrap();
    let prompts = [&all[..70], &all[3..4], &all[..22]];
    let expected = prompts.map(|ids| {
        alone.truncate(0);
        greedy(&mut alone, ids, 12)
    });
    let mut group = model.group(&options, 3).unwrap();
    // What was forgotten leaves its pages to others, in another order.
    group.prefill(1, &all).unwrap();
    group.truncate(1, 0);
    assert!(group.logits(1).is_err());
    for (sequence, ids) in prompts.iter().enumerate() {
        group.prefill(sequence, ids).unwrap();
    }
    let mut sampler = wgllama::Sampler::new(&wgllama::Sampling::default()).unwrap();
    for step in 0..12 {
        let found = group.step(&mut sampler).unwrap();
        let wanted: Vec<_> = expected.iter().map(|ids| Some(ids[step])).collect();
        assert_eq!(found, wanted, "step {step}");
    }
    assert_eq!(group.ids()[1].len(), 13);
}

#[test]
fn a_group_refuses_what_does_not_fit() {
    let Some(gpu) = gpu() else { return };
    let (folder, _files) = model();
    let model = load(&gpu, folder.path());
    let options = wgllama::SessionOptions { context: Some(4), kv: KvFormat::F32, ..Default::default() };
    assert!(model.group(&options, 0).is_err());
    let mut group = model.group(&options, 2).unwrap();
    assert!(group.prefill(2, &[1]).is_err(), "there is no third sequence");
    assert!(group.prefill(0, &[]).is_err() && group.prefill(0, &[1; 5]).is_err());
    assert!(group.feed_each(&[1]).is_err() && group.feed_each(&[1, 9999]).is_err());
    assert!(group.logits(0).is_err());
    group.prefill(0, &[1; 4]).unwrap();
    assert!(matches!(group.feed_each(&[1, 1]), Err(wgllama::Error::ContextFull { max: 4 })));
    assert_eq!(group.ids(), [vec![1; 4], vec![]]);
}

/// Timing a step names every launch and feeds nothing.
#[test]
fn a_profile_times_every_launch_and_feeds_nothing() {
    let Some(gpu) = gpu() else { return };
    let (folder, files) = model();
    let ids = prompt_ids(&files);
    let mut session = session(&load(&gpu, folder.path()), KvFormat::F32, 128, 16);
    session.prefill(&ids[..8]).unwrap();
    let plan = session.plan(wgllama::Phase::Prefill).unwrap();
    session.encode_time(&ids[8..16]).unwrap();
    match session.profile(&ids[8..16]) {
        Ok(timed) => {
            assert!(timed.iter().map(|t| &t.launch).eq(&plan.launches));
            assert!(timed.iter().all(|t| t.seconds > 0.0 && t.seconds < 60.0), "{timed:?}");
        }
        Err(error) => assert!(!gpu.caps().timestamps, "{error}"),
    }
    assert_eq!(session.ids(), &ids[..8]);
    session.truncate(0);
    assert_eq!(greedy(&mut session, &ids, GREEDY.len()), GREEDY);
}

#[test]
fn a_device_without_timestamps_says_so() {
    if gpu().is_none() {
        return;
    }
    let options = wgllama::ContextOptions { baseline: true, ..support::device() };
    let least = wgllama::Context::new(&options).unwrap();
    let (folder, _files) = model();
    let mut session = session(&load(&least, folder.path()), KvFormat::F32, 128, 16);
    let error = session.profile(&[1]).unwrap_err().to_string();
    assert!(error.contains("timestamps"), "{error}");
}

#[test]
#[ignore = "prints the values to pin above"]
fn print_pins() {
    let (_folder, files) = model();
    let (found, logits) = reference(&files, &prompt_ids(&files), GREEDY.len());
    println!("const GREEDY: [u32; 24] = {found:?};\nconst LOGITS: [f32; 8] = {:?};", &logits[..8]);
}
