//! Subgroups of other sizes than the adapter's own. Mesa's software adapter has as many invocations in one as its
//! vectors hold, and makes these as long as it is told; a driver is told once, so that each size has a process.

mod support;

use std::process::{Command, Stdio};

use support::tiny::Tiny;
use support::{gpu, session_options};
use wgllama::caps::AdapterKind;
use wgllama::{
    Context, ContextOptions, KvFormat, LoadOptions, Model, Sampling, SessionOptions, WeightFormat,
};

/// Those of 8 and of 4 are what lavapipe and SwiftShader have anyway. Beyond 16 Mesa only says that there are more:
/// lanes 16 and on have the numbers of the first ones, and no part in sums. That is enough for what is chosen by a
/// size of 32, as long as rows have no more than 16 groups for its lanes.
const SIZES: [u32; 2] = [16, NVIDIA];

/// What NVIDIA's GPUs are known by.
const NVIDIA: u32 = 32;

/// Bits of a vector that holds so many f32 values; what Mesa reads.
fn width(size: u32) -> (&'static str, String) {
    ("LP_NATIVE_VECTOR_WIDTH", (size * 32).to_string())
}

#[test]
fn kernels_are_right_for_other_sizes_of_subgroups() {
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
    // At once, since most of it is compiling, on one core.
    for (size, child) in SIZES.map(|size| (size, start(size))) {
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

/// Every launch of a few steps, with the kernels of software adapters and with those of GPUs.
#[test]
#[ignore = "run once for each size by the test above"]
fn one_size() {
    let size: u32 = std::env::var("WGLLAMA_SUBGROUP").unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Prompts go token by token: steps of many launch kernels that have no subgroups, and take long to compile
    // for long vectors.
    let options = SessionOptions { check: true, ..session_options(KvFormat::F16, 256, 1) };
    let run = |context: &Context, load: &LoadOptions, tokens: usize| {
        assert_eq!(context.caps().subgroup, Some((size, size)));
        let model = Model::load(context, folder.path(), load).unwrap();
        let mut session = model.session(&options).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 3 + i * 31 % 200).collect();
        let stream = session.generate_ids(&ids, &Sampling::default().max_tokens(3)).unwrap();
        stream.collect::<Result<Vec<_>, _>>().unwrap();
        assert!(context.losses().is_empty(), "{:?}", context.losses());
        let compared = session.findings().0.values().flat_map(|compared| &compared.variants);
        compared.filter(|variant| variant.contains("subgroup")).cloned().collect::<Vec<_>>()
    };
    let open = |treat_as| Context::new(&ContextOptions { treat_as, ..support::device() }).unwrap();
    if size == NVIDIA {
        // Bits masked in place, and tables that the lanes of a subgroup look up at each other. Three and five
        // groups of 32 columns: most lanes have none.
        let of_groups = Tiny { hidden: 96, intermediate: 160, head_dim: 16, ..Tiny::default() };
        of_groups.write(folder.path()).unwrap();
        for format in [WeightFormat::IQ4_NL, WeightFormat::MXFP4] {
            let quantised = LoadOptions { quantize: Some(format), ..Default::default() };
            let compared = run(&open(Some(AdapterKind::Discrete)), &quantised, 2);
            assert!(compared.iter().any(|v| v.contains("masks") && v.contains("lanes,")), "{compared:?}");
        }
        return;
    }
    Tiny::default().write(folder.path()).unwrap();
    for treat_as in [None, Some(AdapterKind::Discrete)] {
        let start = std::time::Instant::now();
        let compared = run(&open(treat_as), &LoadOptions::default(), 70);
        println!("{size}: {} variants in {:?}", compared.len(), start.elapsed());
        assert!(compared.len() >= 4, "{compared:?}");
    }
}
