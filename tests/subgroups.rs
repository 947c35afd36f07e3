//! Subgroups of every size that there is. Mesa's software adapter has as many invocations in one as its
//! vectors hold, and makes these as long as it is told; a driver is told once, so that each size has a process.

mod support;

use std::process::{Command, Stdio};

use support::tiny::Tiny;
use support::{gpu, load, session_options};
use wgllama::caps::AdapterKind;
use wgllama::{
    Context, ContextOptions, KvFormat, LoadOptions, Model, Sampling, SessionOptions, WeightFormat,
};

/// Those of 8 and of 4 are what lavapipe and SwiftShader have anyway.
const SIZES: [u32; 4] = [16, 32, 64, 128];

/// Bits of a vector that holds so many f32 values; what Mesa reads.
fn width(size: u32) -> (&'static str, String) {
    ("LP_NATIVE_VECTOR_WIDTH", (size * 32).to_string())
}

#[test]
fn kernels_are_right_for_every_size_of_subgroups() {
    let Some(gpu) = gpu() else { return };
    if !gpu.adapter().name.starts_with("llvmpipe") || gpu.caps().subgroup.is_none() {
        eprintln!("skipped: {} has subgroups of its own sizes only", gpu.adapter().name);
        return;
    }
    let start = |size: u32| {
        let (name, bits) = width(size);
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_size", "--ignored", "--nocapture"])
            .env(name, bits)
            // Mesa would take what it compiled for another size: its key does not name the size.
            .env("MESA_SHADER_CACHE_DISABLE", "true")
            .env("WGLLAMA_SUBGROUP", size.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // Two at a time, since most of it is compiling, on one core.
    for pair in SIZES.chunks(2) {
        let children: Vec<_> = pair.iter().map(|size| (size, start(*size))).collect();
        for (size, child) in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            println!("{text}");
            assert!(
                output.status.success(),
                "subgroups of {size}: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// Every launch of a few steps, with the kernels of software adapters and with those of GPUs.
#[test]
#[ignore = "run once for each size by the test above"]
fn one_size() {
    let size: u32 = std::env::var("WGLLAMA_SUBGROUP").unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    // Prompts go token by token: steps of many launch kernels that have no subgroups, and take long to compile
    // for long vectors.
    let options = SessionOptions { check: true, ..session_options(KvFormat::F16, 256, 1) };
    let ids: Vec<u32> = (0..70).map(|i| 3 + i * 31 % 200).collect();
    for treat_as in [None, Some(AdapterKind::Discrete)] {
        let start = std::time::Instant::now();
        let context = Context::new(&ContextOptions { treat_as, ..support::device() }).unwrap();
        assert_eq!(context.caps().subgroup, Some((size, size)));
        let model = load(&context, folder.path());
        let mut session = model.session(&options).unwrap();
        let stream = session.generate_ids(&ids, &Sampling::default().max_tokens(3)).unwrap();
        let written: Vec<_> = stream.map(|piece| piece.unwrap().id).collect();
        let with_subgroups = session.findings().0.values().flat_map(|compared| &compared.variants);
        let with_subgroups = with_subgroups.filter(|variant| variant.contains("subgroup")).count();
        println!("{size}: {written:?}, {with_subgroups} variants in {:?}", start.elapsed());
        assert!(with_subgroups >= 4 && context.losses().is_empty(), "{:?}", context.losses());
        // The kernels of NVIDIA's GPUs, known by the size of their subgroups: bits masked in place, and tables
        // that the lanes of a subgroup look up at each other.
        let nvidia = treat_as.is_some() && size == 32;
        let folder = tempfile::tempdir().unwrap();
        // Three and five groups of 32 columns: most lanes have none.
        let of_groups = Tiny { hidden: 96, intermediate: 160, head_dim: 16, ..Tiny::default() };
        of_groups.write(folder.path()).unwrap();
        for format in [WeightFormat::IQ4_NL, WeightFormat::MXFP4].into_iter().filter(|_| nvidia) {
            let quantised = LoadOptions { quantize: Some(format), ..Default::default() };
            let model = Model::load(&context, folder.path(), &quantised).unwrap();
            let mut session = model.session(&options).unwrap();
            let stream = session.generate_ids(&ids[..2], &Sampling::default().max_tokens(2)).unwrap();
            stream.collect::<Result<Vec<_>, _>>().unwrap();
            let compared: Vec<_> = session.findings().0.values().flat_map(|found| &found.variants).collect();
            assert!(compared.iter().any(|v| v.contains("masks") && v.contains("lanes,")), "{compared:?}");
            assert!(context.losses().is_empty(), "{:?}", context.losses());
        }
    }
}
