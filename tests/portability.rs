//! Writes every variant for `make portability`, which asks compilers other than naga about them: the linked
//! WGSL for Tint, the compiler of Chromium, and the HLSL that naga makes of it for DXC, that of DX12.

#[path = "support/variants.rs"]
mod variants;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use naga::back::hlsl;
use serde_json::{Value, json};
use variants::{all_variants, parse, validate};
use wgllama::kernels::{Part, Variant, link::link};

/// The oldest shader model that has subgroups, and the first with products of packed bytes, which naga
/// writes out for the other. Later ones bring nothing that the kernels use.
const SHADER_MODELS: [hlsl::ShaderModel; 2] = [hlsl::ShaderModel::V6_0, hlsl::ShaderModel::V6_4];

#[test]
#[ignore = "writes files for make portability"]
fn write_texts() {
    let folder = std::env::var_os("WGLLAMA_PORTABILITY").expect("WGLLAMA_PORTABILITY names the folder");
    let folder = Path::new(&folder);
    for kind in ["wgsl", "hlsl"] {
        let _ = fs::remove_dir_all(folder.join(kind));
        fs::create_dir_all(folder.join(kind)).unwrap();
    }
    let mut limits = HashSet::new();
    let mut list: Vec<Value> = Vec::new();
    for variant in all_variants() {
        // The full name is too long for some file systems.
        let file = format!("{:05}-{}", list.len(), variant.kernel().name);
        let module = parse(&variant);
        let text = folder.join(format!("wgsl/{file}.wgsl"));
        if variant.needs_coop() {
            fs::write(text, without_matrices(&variant)).unwrap();
        } else {
            fs::write(text, link(&variant).source).unwrap();
            write_hlsl(folder, &file, &variant, &module);
        }
        list.push(json!({
            "file": file,
            "name": variant.to_string(),
            "subgroups": variant.needs_subgroup(),
            "cooperative_matrices": variant.needs_coop(),
            "workgroup_size": module.entry_points[0].workgroup_size,
            "new_limits": !variant.needs_coop() && limits.insert(decides_limits(&variant, &module)),
        }));
    }
    fs::write(folder.join("variants.json"), serde_json::to_string_pretty(&list).unwrap()).unwrap();
}

/// A kernel for matrix units without them. Nobody but naga knows its cooperative matrices; but what surrounds them,
/// which brings their sides to workgroup memory, can be asked about, with sums of invocations in their place and with
/// f32 for f16, which the device of Tint does not have.
fn without_matrices(variant: &Variant) -> String {
    let emulated = include_str!("support/coop_emulated.wgsl");
    let small = variant.parts().any(|part| part == Part::Coop8);
    let (side, part) = if small { (8, Part::Coop8) } else { (16, Part::Coop16) };
    let emulated = emulated
        .replace("SIDE = 16u", &format!("SIDE = {side}u"))
        .replace("SIDES = 2u", &format!("SIDES = {}u", 32 / side));
    let source = link(variant).source.replace(part.source().1, &emulated);
    assert!(!source.contains("coop_mat"), "{variant}");
    let f32s = source.replace("array<f16,", "array<f32,").replace("vec4<f16>", "vec4<f32>");
    f32s.replace("enable wgpu_cooperative_matrix;", "").replace("enable f16;", "")
}

/// What the use of limits depends on: kernel, numbers and bindings. A pipeline, which takes most compilers
/// much longer than a module, has to be made only for the first variant of each.
fn decides_limits(variant: &Variant, module: &naga::Module) -> String {
    let numbers: Vec<_> = variant.numbers().collect();
    let bindings: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| v.binding).collect();
    format!("{} {numbers:?} {bindings:?}", variant.kernel().name)
}

/// A file for each shader model that makes a difference.
fn write_hlsl(folder: &Path, file: &str, variant: &Variant, module: &naga::Module) {
    let info = validate(variant, module);
    let mut written = HashSet::new();
    for shader_model in SHADER_MODELS {
        // As wgpu has it written for `gpu/pipelines.rs`: no run-time checks, workgroup memory as it is.
        let options = hlsl::Options {
            shader_model,
            fake_missing_bindings: true,
            zero_initialize_workgroup_memory: false,
            restrict_indexing: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &Default::default()).write(module, &info, None).unwrap();
        if !written.contains(&text) {
            fs::write(folder.join(format!("hlsl/{file}.cs_{}.hlsl", shader_model.to_str())), &text).unwrap();
            written.insert(text);
        }
    }
}
