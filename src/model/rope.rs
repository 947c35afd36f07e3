//! The rotation of positions, as configurations and GGUF metadata describe it.

use crate::error::{Error, Result};
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::graph::{Rope, RopeScaling, yarn_magnitude};
use crate::host::TensorSource;
use crate::quant;

/// All kinds of scaling that `config.json` may ask for.
const KINDS: &str = "default, linear, dynamic, yarn, llama3, longrope";

/// Turns of the training's positions between which YaRN mixes, unless a file says otherwise.
const YARN_TURNS: (f64, f64) = (32.0, 1.0);

/// Values of a head that turn: even, and at most all.
pub fn rotated(head_dim: usize, share: f64) -> usize {
    ((head_dim as f64 * share) as usize).min(head_dim) / 2 * 2
}

/// What a `config.json` says of the rotation of heads of `head_dim` values, in a model of
/// `positions`: `rope_parameters` of transformers 5, or `rope_scaling` of 4 with keys beside it.
pub fn from_json(json: &JsonFile, head_dim: usize, positions: usize) -> Result<Rope> {
    let own = match json.object("rope_parameters")? {
        Some(own) => Some(own),
        None => json.object("rope_scaling")?,
    };
    one_from_json(json, own.as_ref(), ("rope_theta", 10_000.0), (head_dim, positions))
}

/// As [`from_json`], where `own` holds the parameters of one rotation among several, whose base may
/// stand beside them under `base`'s key and is `base`'s number if nothing is said.
pub fn one_from_json(
    json: &JsonFile,
    own: Option<&JsonFile>,
    (key, usual): (&str, f64),
    (head_dim, positions): (usize, usize),
) -> Result<Rope> {
    let number = |key: &str| -> Result<Option<f64>> {
        match own.map_or(Ok(None), |own| own.opt_f64(key))? {
            Some(value) => Ok(Some(value)),
            None => json.opt_f64(key),
        }
    };
    let theta = match own.map_or(Ok(None), |own| own.opt_f64("rope_theta"))? {
        Some(theta) => theta,
        None => json.opt_f64(key)?.unwrap_or(usual),
    };
    let share = number("partial_rotary_factor")?.unwrap_or(1.0);
    let rotated = rotated(head_dim, positive(json, "partial_rotary_factor", share)?);
    let scaling = own.map_or(Ok(RopeScaling::Default), |own| scaling(json, own, rotated, positions))?;
    Ok(Rope { theta: positive(json, "rope_theta", theta)?, rotated, scaling })
}

fn positive(json: &JsonFile, key: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(json.error(key, format!("expected a positive number, found {value}")))
}

fn scaling(json: &JsonFile, own: &JsonFile, rotated: usize, positions: usize) -> Result<RopeScaling> {
    // Phi 3 has it beside the parameters, where it counts more.
    let original = match json.opt_usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => own.opt_usize("original_max_position_embeddings")?.unwrap_or(positions),
    };
    if original == 0 {
        return Err(own.error("original_max_position_embeddings", "expected at least 1, found 0"));
    }
    let required = |key: &str| positive(own, key, own.f64(key)?);
    let optional = |key: &str| own.opt_f64(key)?.map(|value| positive(own, key, value)).transpose();
    let stretch = |factor: Option<f64>| factor.unwrap_or(positions as f64 / original as f64);
    let divisors = |key: &str| -> Result<Vec<f64>> {
        let values = own.opt_f64s(key)?.ok_or_else(|| own.error(key, "missing"))?;
        if values.len() != rotated / 2 {
            return Err(own.error(key, format!("expected {} numbers, found {}", rotated / 2, values.len())));
        }
        values.into_iter().map(|value| positive(own, key, value)).collect()
    };
    let kind = own.opt_str("rope_type")?.or(own.opt_str("type")?).unwrap_or("default");
    Ok(match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: required("factor")?, positions },
        "yarn" => {
            let factor = stretch(optional("factor")?);
            let magnitude =
                match (optional("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
                    (Some(magnitude), ..) => magnitude,
                    (None, Some(up), Some(down)) => yarn_magnitude(factor, up) / yarn_magnitude(factor, down),
                    _ => yarn_magnitude(factor, 1.0),
                };
            RopeScaling::Yarn {
                factor,
                positions: original,
                fast: optional("beta_fast")?.unwrap_or(YARN_TURNS.0),
                slow: optional("beta_slow")?.unwrap_or(YARN_TURNS.1),
                truncate: own.opt_bool("truncate")?.unwrap_or(true),
                magnitude,
            }
        }
        "llama3" => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                let message = format!("expected more than low_freq_factor {low}, found {high}");
                return Err(own.error("high_freq_factor", message));
            }
            RopeScaling::Llama3 { factor: required("factor")?, low, high, positions: original }
        }
        // The name in the first configurations of Phi 3.
        "longrope" | "su" => {
            let factor = stretch(optional("factor")?);
            let usual = if factor > 1.0 { (1.0 + factor.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
            RopeScaling::Long {
                short: divisors("short_factor")?,
                long: divisors("long_factor")?,
                positions: original,
                magnitude: optional("attention_factor")?.unwrap_or(usual),
            }
        }
        other => {
            let message = format!("rope scaling '{other}' is not supported; supported: {KINDS}");
            return Err(own.error("rope_type", message));
        }
    })
}

/// What GGUF metadata say of the rotation of heads of `head_dim` values.
pub fn from_gguf(gguf: &Gguf, arch: &str, head_dim: usize, positions: usize) -> Result<Rope> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let number = |name: &str| super::positive_in_gguf(gguf, &key(name));
    let size = |name: &str| -> Result<Option<usize>> {
        Ok(gguf.opt_u64(&key(name))?.and_then(|v| usize::try_from(v).ok()))
    };
    let turning = size("dimension_count")?.unwrap_or(head_dim).min(head_dim) / 2 * 2;
    let divisors = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(tensor) = gguf.tensor(name) else { return Ok(None) };
        let mut values = vec![0.0; tensor.len()];
        quant::decode(tensor.format, &tensor.bytes, &mut values);
        let fits = values.len() == turning / 2 && values.iter().all(|v| v.is_finite() && *v > 0.0);
        let problem = || Error::Tensors {
            path: gguf.path().to_path_buf(),
            problems: vec![format!("{name}: expected {} positive numbers", turning / 2)],
        };
        if fits { Ok(Some(values.into_iter().map(f64::from).collect())) } else { Err(problem()) }
    };
    let original = size("scaling.original_context_length")?.filter(|n| *n > 0).unwrap_or(positions);
    let magnitude = number("scaling.attn_factor")?.or(number("scaling.yarn_attn_factor")?).unwrap_or(1.0);
    let factor = number("scaling.factor")?;
    let kind = gguf.opt_str(&key("scaling.type"))?.unwrap_or("none");
    let long = (divisors("rope_factors_short.weight")?, divisors("rope_factors_long.weight")?);
    let scaling = match (long, divisors("rope_freqs.weight")?) {
        ((Some(short), Some(long)), _) => RopeScaling::Long { short, long, positions: original, magnitude },
        // The divisors of Llama 3 are put together when a file is converted.
        (_, Some(all)) => RopeScaling::Long { short: all.clone(), long: all, positions, magnitude: 1.0 },
        _ => match (kind, factor.or(number("scale_linear")?)) {
            ("none", None) => RopeScaling::Default,
            ("none" | "linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", Some(factor)) => RopeScaling::Yarn {
                factor,
                positions: original,
                fast: number("scaling.yarn_beta_fast")?.unwrap_or(YARN_TURNS.0),
                slow: number("scaling.yarn_beta_slow")?.unwrap_or(YARN_TURNS.1),
                truncate: true,
                magnitude: magnitude * yarn_magnitude(factor, 1.0),
            },
            ("linear" | "yarn", None) => return Err(gguf.error(&key("scaling.factor"), "missing")),
            ("longrope", _) => {
                let message = "expected the tensors rope_factors_short.weight and rope_factors_long.weight";
                return Err(gguf.error(&key("scaling.type"), message));
            }
            (other, _) => {
                let message = format!(
                    "rope scaling '{other}' is not supported; supported: none, linear, yarn, longrope"
                );
                return Err(gguf.error(&key("scaling.type"), message));
            }
        },
    };
    let theta = number("freq_base")?.unwrap_or(10_000.0);
    Ok(Rope { theta, rotated: turning, scaling })
}

/// Writes what [`from_gguf`] reads, but for the base and the number of values that turn; answers
/// vectors that belong into the file. None for a scaling that GGUF does not know.
pub fn to_gguf(rope: &Rope, arch: &str, writer: &mut GgufWriter) -> Option<Vec<(&'static str, Vec<f32>)>> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let floats = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
    let mut vectors = Vec::new();
    match &rope.scaling {
        RopeScaling::Default => (),
        RopeScaling::Linear { factor } => {
            writer.string(&key("type"), "linear");
            writer.f32(&key("factor"), *factor as f32);
        }
        RopeScaling::Yarn { factor, positions, fast, slow, magnitude, truncate: true } => {
            writer.string(&key("type"), "yarn");
            writer.f32(&key("factor"), *factor as f32);
            writer.u32(&key("original_context_length"), u32::try_from(*positions).unwrap_or(u32::MAX));
            writer.f32(&key("attn_factor"), (magnitude / yarn_magnitude(*factor, 1.0)) as f32);
            writer.f32(&key("yarn_beta_fast"), *fast as f32);
            writer.f32(&key("yarn_beta_slow"), *slow as f32);
        }
        RopeScaling::Llama3 { .. } => {
            let plain = Rope::plain(rope.theta, rope.rotated).rotations(0).inv_freq;
            let scaled = rope.rotations(0).inv_freq;
            let divisors: Vec<f64> =
                plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
            vectors.push(("rope_freqs.weight", floats(&divisors)));
        }
        RopeScaling::Long { short, long, positions, magnitude } => {
            writer.u32(&key("original_context_length"), u32::try_from(*positions).unwrap_or(u32::MAX));
            writer.f32(&key("attn_factor"), *magnitude as f32);
            vectors.push(("rope_factors_short.weight", floats(short)));
            vectors.push(("rope_factors_long.weight", floats(long)));
        }
        RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } => return None,
    }
    Some(vectors)
}
