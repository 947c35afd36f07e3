//! Launches compared with the CPU: right ones pass, on every family and format, and wrong ones are named,
//! and done without.

mod support;

use std::path::Path;

use support::tiny::Tiny;
use support::{gpu, greedy, load, session_options, shared};
use wgllama::caps::AdapterKind;
use wgllama::gpu::Faults;
use wgllama::{Activations, Context, ContextOptions, Error, KvFormat, Sampling, Session, SessionOptions};

/// Options of sessions whose launches are compared.
fn checked(kv: KvFormat, chunk: usize) -> SessionOptions {
    let activations = Activations::F32;
    SessionOptions {
        context: Some(256),
        kv,
        chunk: Some(chunk),
        activations,
        check: true,
        ..Default::default()
    }
}

fn check(gpu: &Context, path: &Path, kv: KvFormat) {
    let model = load(gpu, path);
    let vocab = model.config().vocab_size as u32;
    let ids: Vec<u32> = (0..70).map(|i| (i * 31 + 5) % vocab).collect();
    let mut session = model.session(&checked(kv, 40)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let sampling = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, ..Sampling::default() };
    let stream = session
        .generate_ids(&ids, &sampling.max_tokens(4))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for piece in stream {
        piece.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let (values, worst) = session.findings().summary();
    println!("{}: {values} values, {worst:?}", path.display());
    assert!(values > 1000);
}

#[test]
fn every_launch_of_every_family_is_right() {
    let (Some(shared), Some(gpu)) = (shared(), gpu()) else { return };
    let mut folders: Vec<_> =
        [shared.join("models/families"), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families")]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()))
            .filter(|path| path.join("config.json").exists())
            .collect();
    folders.sort();
    for (path, kv) in folders.iter().zip(KvFormat::ALL.into_iter().cycle()) {
        check(&gpu, path, kv);
    }
}

/// A tiny model, on the test device with faults, with kernels as for `kind`.
fn faulty(faults: Faults, kind: Option<AdapterKind>, skip_self_check: bool) -> Option<(Context, Session)> {
    gpu()?;
    let options = ContextOptions { faults, treat_as: kind, skip_self_check, ..support::device() };
    let context = Context::new(&options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let model = load(&context, folder.path());
    let session =
        model.session(&SessionOptions { check: skip_self_check, ..session_options(KvFormat::F32, 128, 64) });
    match session {
        Ok(session) => Some((context, session)),
        Err(error) => panic!("{error}"),
    }
}

const IDS: [u32; 20] = [1, 70, 71, 101, 5, 9, 200, 77, 31, 4, 90, 91, 92, 17, 18, 19, 100, 250, 251, 3];

fn idle(kernel: &str) -> Faults {
    Faults { idle: Some(kernel.to_string()), ..Faults::default() }
}

#[test]
fn a_check_names_the_first_launch_that_differs() {
    for (kernel, kind, launch) in [
        ("embed", None, "embed"),
        ("rms_norm", None, "layers.0.attn_norm"),
        ("rope_kv", None, "layers.0.q"),
        ("attention", None, "layers.0.attn"),
        ("attention_merge", Some(AdapterKind::Discrete), "layers.0.attn"),
        ("gemm", Some(AdapterKind::Discrete), "layers.0.qkv"),
    ] {
        let Some((_, mut session)) = faulty(idle(kernel), kind, true) else { return };
        let error = session.prefill(&IDS).and_then(|()| session.prefill(&IDS[..1])).unwrap_err();
        let Error::WrongResult { launch: found, variant, .. } = &error else { panic!("{kernel}: {error}") };
        assert!(found == launch && variant.contains(kernel), "{kernel}: {error}");
        // What the error is about was not fed.
        assert!(session.ids().len() % IDS.len() == 0);
    }
}

/// Kernels that are wrong, or do not compile, and have others in their place.
#[test]
fn what_fails_is_done_without_and_told_once() {
    let Some((plain, mut session)) = faulty(Faults::default(), None, false) else { return };
    let on_cpu = plain.caps().kind == AdapterKind::Cpu;
    let expected = greedy(&mut session, &IDS, 12);
    let gpu = Some(AdapterKind::Discrete);
    let refused = |kernel: &str| Faults { refused: Some(kernel.to_string()), ..Faults::default() };
    let mut cases = vec![(refused("gemm["), gpu)];
    if plain.caps().subgroup.is_some() {
        cases.extend(
            ["gemv_staged", "workgroup+subgroup", "sample[workgroup+subgroup"].map(|k| (idle(k), gpu)),
        );
        if on_cpu {
            cases.extend([(idle("gemv_lanes"), None), (refused("gemv_lanes"), None)]);
        }
    }
    for (fault, kind) in cases {
        let Some((context, mut session)) = faulty(fault.clone(), kind, false) else { return };
        let found = greedy(&mut session, &IDS, 12);
        println!("{fault:?}: {:?}", context.losses());
        assert_eq!(found, expected, "{fault:?}");
        // A kernel may have to be given up more than once, each time in another variant.
        assert!((1..=2).contains(&context.losses().len()), "{fault:?}");
        // Other sessions know already.
        let before = context.losses().len();
        session.model().session(&session_options(KvFormat::F32, 128, 64)).unwrap();
        assert_eq!(context.losses().len(), before);
    }
}

#[test]
fn a_kernel_without_another_is_an_error() {
    if gpu().is_none() {
        return;
    }
    let context = Context::new(&ContextOptions { faults: idle("rope_kv"), ..support::device() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let error = load(&context, folder.path()).session(&SessionOptions::default()).err().unwrap();
    assert!(
        matches!(&error, Error::WrongResult { variant, .. } if variant.starts_with("rope_kv")),
        "{error}"
    );
}

/// Sessions bind some plans late, and try their kernels then: on a cache of their own.
#[test]
fn trials_leave_sessions_as_they_are() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let options = session_options(KvFormat::F32, 128, 64);
    let write = |skip_self_check| {
        let treat_as = Some(AdapterKind::Discrete);
        let context =
            Context::new(&ContextOptions { treat_as, skip_self_check, ..support::device() }).unwrap();
        let model = load(&context, folder.path());
        let mut session = model.session(&options).unwrap();
        (0..70).for_each(|i| session.prefill(&[3 + i]).unwrap());
        session.prefill(&IDS).unwrap();
        session.logits().unwrap().to_vec()
    };
    assert_eq!(write(false), write(true));
    // More sequences than positions.
    let context = Context::new(&support::device()).unwrap();
    let model = load(&context, folder.path());
    let mut group = model.group(&session_options(KvFormat::F32, 4, 4), 8).unwrap();
    group.feed_each(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
}
