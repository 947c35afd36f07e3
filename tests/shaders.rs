//! Every kernel in every variant, without an adapter: links, parses, validates with just the
//! capabilities that the variant claims, agrees with its declaration, keeps the limits, and is
//! written as SPIR-V, MSL and HLSL.

#[path = "support/variants.rs"]
mod variants;

use std::collections::BTreeSet;

use variants::{all_variants, parse, validate};
use wgllama::caps::Caps;
use wgllama::kernels::{Access, KERNELS, Part, link::link};

/// The bindings of a group: number, name, access.
fn bindings(module: &naga::Module, group: u32) -> Vec<(u32, String, Access)> {
    let mut found: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, var)| {
            let binding = var.binding.as_ref().filter(|b| b.group == group)?;
            let access = match var.space {
                naga::AddressSpace::Uniform => Access::Uniform,
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                    Access::Write
                }
                _ => Access::Read,
            };
            Some((binding.binding, var.name.clone().unwrap_or_default(), access))
        })
        .collect();
    found.sort_by_key(|(number, ..)| *number);
    found
}

#[test]
fn every_variant_agrees_with_its_declaration() {
    for variant in all_variants() {
        let decl = variant.kernel();
        let module = parse(&variant);
        validate(&variant, &module);

        let found = bindings(&module, 0);
        let params_at = decl.bindings.len() as u32;
        let mut used = BTreeSet::new();
        for (number, name, access) in &found {
            if *number == params_at {
                assert_eq!((name.as_str(), *access), ("p", Access::Uniform), "{variant}: params");
                continue;
            }
            let declared = &decl.bindings[*number as usize];
            assert_eq!(name, declared.name, "{variant}: binding {number}");
            assert_eq!(*access, variant.access(declared), "{variant}: access of {name}");
            used.insert(*number);
        }
        // A bias, a gain and routes are bound only where the variant links them.
        let without = |part| variant.parts().any(|p| p == part);
        for (number, declared) in decl.bindings.iter().enumerate() {
            let unused_ok = match declared.name {
                "bias" => without(Part::BiasNone),
                "gain" => without(Part::NormNone),
                "routes" => without(Part::MatrixOne),
                "qw" | "kw" => without(Part::HeadsPlain),
                _ => false,
            };
            assert!(
                used.contains(&(number as u32)) || unused_ok,
                "{variant}: {} is not in the shader",
                declared.name
            );
        }
        let step = bindings(&module, 1);
        assert!(
            step.iter().all(|(n, name, a)| (*n, name.as_str(), *a) == (0, "step", Access::Read)),
            "{variant}"
        );

        let params = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).unwrap().1;
        let naga::TypeInner::Struct { members, .. } = &params.inner else { panic!("{variant}: Params") };
        let members: Vec<_> = members
            .iter()
            .map(|m| {
                let kind = match module.types[m.ty].inner {
                    naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
                    naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
                    _ => "other",
                };
                (m.name.clone().unwrap_or_default(), kind, m.offset)
            })
            .collect();
        let declared: Vec<_> =
            decl.params.iter().enumerate().map(|(i, (n, t))| (n.to_string(), *t, 4 * i as u32)).collect();
        assert_eq!(members, declared, "{variant}: params");
    }
}

#[test]
fn every_variant_keeps_the_limits_of_webgpu() {
    for variant in all_variants() {
        let module = parse(&variant);
        let entry = &module.entry_points[0];
        assert_eq!((module.entry_points.len(), entry.name.as_str()), (1, "main"), "{variant}");
        // Adapters with matrix units offer more.
        let (invocations, memory) = if variant.needs_coop() { (512, 36 << 10) } else { (256, 16 << 10) };
        assert!(entry.workgroup_size.iter().product::<u32>() <= invocations, "{variant}");
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let shared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| layouter[v.ty].size)
            .sum();
        assert!(shared <= memory, "{variant}: {shared} bytes of workgroup memory");
        let storage = bindings(&module, 0).iter().filter(|b| b.2 != Access::Uniform).count() + 1;
        assert!(storage <= 8, "{variant}: {storage} storage buffers");
    }
}

#[test]
fn every_variant_is_written_for_every_backend() {
    for variant in all_variants() {
        let module = parse(&variant);
        let info = validate(&variant, &module);
        let spv = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
        naga::back::spv::write_vec(&module, &info, &spv, None)
            .unwrap_or_else(|e| panic!("{variant}: SPIR-V: {e}"));
        let msl = naga::back::msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..Default::default()
        };
        naga::back::msl::write_string(&module, &info, &msl, &Default::default())
            .unwrap_or_else(|e| panic!("{variant}: MSL: {e}"));
        // No DX12 adapter offers cooperative matrices, and naga writes no HLSL for them.
        if variant.needs_coop() {
            continue;
        }
        let hlsl = naga::back::hlsl::Options {
            shader_model: naga::back::hlsl::ShaderModel::V6_0,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let mut text = String::new();
        naga::back::hlsl::Writer::new(&mut text, &hlsl, &Default::default())
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{variant}: HLSL: {e}"));
    }
}

/// `.wgsl` files below `shaders/`, with their paths relative to it.
fn shader_files() -> BTreeSet<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut found = BTreeSet::new();
    for folder in ["", "parts"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".wgsl") {
                found.insert(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    found
}

#[test]
fn no_shader_and_no_rust_half_is_an_orphan() {
    let mut known: BTreeSet<String> = KERNELS.iter().map(|d| format!("{}.wgsl", d.name)).collect();
    known.extend(Part::all().iter().map(|p| p.source().0.to_string()));
    assert_eq!(shader_files(), known);
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    for decl in KERNELS {
        assert!(src.join(format!("{}.rs", decl.name)).exists(), "{} has no Rust half", decl.name);
    }
}

#[test]
fn every_kernel_states_its_formula_grid_and_links() {
    for decl in KERNELS {
        let head: Vec<&str> = decl.source.lines().take_while(|l| l.starts_with("//")).collect();
        let text = head.join("\n");
        assert!(text.contains('=') || text.contains("<-"), "{}: no formula", decl.name);
        for word in ["// Grid ", "// Links "] {
            assert!(text.contains(word), "{}: no '{word}' line", decl.name);
        }
    }
    for part in Part::all() {
        let (file, text) = part.source();
        assert!(text.starts_with("// "), "{file} opens with no comment");
    }
}

#[test]
fn linked_lines_are_found_in_their_files() {
    let variant = (KERNELS[0].variants)(&Caps::baseline())[0];
    let linked = link(&variant);
    let (at, _) = linked.source.lines().enumerate().find(|(_, l)| l.starts_with("fn kernel")).unwrap();
    let here = linked.locate(at + 1);
    let line: usize = here.rsplit(':').next().unwrap().parse().unwrap();
    assert!(here.starts_with("embed.wgsl:"), "{here}");
    assert!(KERNELS[0].source.lines().nth(line - 1).unwrap().starts_with("fn kernel"), "{here}");
}
