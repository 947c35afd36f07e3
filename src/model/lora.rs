//! Low-rank adapters (Hu et al. 2021, LoRA) as PEFT saves them: beside each adapted W stand two thin
//! matrices, and W x becomes W x + s B (A x). The weights stay as they are, in any format; the thin
//! matrices of all adapters of a product, and of all tensors joined in it, are two more products.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::map::MappedFile;
use crate::files::{JsonFile, SafetensorsFolder};
use crate::graph::{Graph, Part, RowOrder, WeightSpec};
use crate::host::{HostTensor, TensorSource};
use crate::quant;

/// How PEFT's names of tensors begin and end.
const PREFIX: &str = "base_model.model.";
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// An adapter.
pub struct Lora {
    path: PathBuf,
    /// By the name of the tensor that it adapts.
    pairs: BTreeMap<String, Pair>,
}

/// What is added to a matrix: `up` times `down`.
struct Pair {
    rank: usize,
    /// `[rank, columns]`
    down: Vec<f32>,
    /// `[rows, rank]`, with all factors.
    up: Vec<f32>,
}

impl Pair {
    /// Refuses factors of another matrix than that of `tensor` with its rows and columns.
    fn check(&self, tensor: &str, (rows, cols): (usize, usize), path: &Path) -> Result<()> {
        let (found_rows, found_cols) = (self.up.len() / self.rank, self.down.len() / self.rank);
        if (found_rows, found_cols) == (rows, cols) {
            return Ok(());
        }
        let message = format!(
            "{tensor}: expected factors for {rows} by {cols} values, found some for {found_rows} by {found_cols}"
        );
        Err(Error::Tensors { path: path.to_path_buf(), problems: vec![message] })
    }
}

impl Lora {
    /// Reads a PEFT folder, `adapter_config.json` and `adapter_model.safetensors`; what it adds is taken
    /// times `scale`. An error names whatever is not a plain low-rank adapter.
    pub fn open(folder: &Path, scale: f32) -> Result<Self> {
        if !scale.is_finite() {
            return Err(Error::option("lora", format!("expected a number as scale, found {scale}")));
        }
        let json = JsonFile::open(&folder.join("adapter_config.json"))?;
        check(&json)?;
        let alpha = json.opt_f64("lora_alpha")?.unwrap_or(8.0);
        let by_root = json.opt_bool("use_rslora")?.unwrap_or(false);
        let own = json.object("alpha_pattern")?;
        let file = folder.join("adapter_model.safetensors");
        let files = SafetensorsFolder::from_files(&file, vec![MappedFile::open(&file)?])?;
        let problem = |name: &str, what: &str| Error::Tensors {
            path: file.clone(),
            problems: vec![format!("{name}: {what}")],
        };
        let mut pairs = BTreeMap::new();
        for name in files.names() {
            if name.ends_with(UP) {
                continue;
            }
            let module = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(DOWN));
            let module = module.ok_or_else(|| problem(name, "expected the factors of a linear layer"))?;
            let up = format!("{PREFIX}{module}{UP}");
            let matrix = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
                let tensor = files.tensor(name).ok_or_else(|| problem(name, "missing"))?;
                let mut values = vec![0.0; tensor.len()];
                quant::decode(tensor.format, &tensor.bytes, &mut values);
                match values.iter().all(|v| v.is_finite()) {
                    true => Ok((tensor.shape, values)),
                    false => Err(problem(name, "expected finite numbers")),
                }
            };
            let ((down_shape, down), (up_shape, mut up_values)) = (matrix(name)?, matrix(&up)?);
            let (&[rank, cols], &[_, inner]) = (down_shape.as_slice(), up_shape.as_slice()) else {
                return Err(problem(name, "expected two dimensions"));
            };
            // More could say nothing new, and would make the joined matrices as large as one likes.
            if rank > cols {
                return Err(problem(
                    name,
                    &format!("expected at most {cols} rows, as many as columns, found {rank}"),
                ));
            }
            if rank != inner || rank == 0 {
                return Err(problem(&up, &format!("expected {rank} columns, found {inner}")));
            }
            let alpha = match &own {
                Some(own) => alpha_of(own, module)?.unwrap_or(alpha),
                None => alpha,
            };
            let divisor = if by_root { (rank as f64).sqrt() } else { rank as f64 };
            let factor = f64::from(scale) * alpha / divisor;
            up_values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            pairs.insert(format!("{module}.weight"), Pair { rank, down, up: up_values });
        }
        let lone = |name: &&str| {
            let module = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(UP));
            module.is_some_and(|module| !pairs.contains_key(&format!("{module}.weight")))
        };
        match files.names().into_iter().find(lone) {
            Some(name) => Err(problem(name, "expected its other factor, lora_A, found none")),
            None => Ok(Self { path: folder.to_path_buf(), pairs }),
        }
    }
}

impl Lora {
    /// The names of the tensors that it adapts.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }
}

/// Refuses what is not a sum of products of two matrices.
fn check(json: &JsonFile) -> Result<()> {
    let kind = json.opt_str("peft_type")?.unwrap_or("LORA");
    if kind != "LORA" {
        return Err(json.error("peft_type", format!("expected 'LORA', found '{kind}'")));
    }
    let bias = json.opt_str("bias")?.unwrap_or("none");
    if bias != "none" {
        return Err(json.error("bias", format!("expected 'none', found '{bias}'")));
    }
    for key in ["fan_in_fan_out", "use_dora", "lora_bias", "use_qalora"] {
        if json.opt_bool(key)?.unwrap_or(false) {
            return Err(json.error(key, "expected false, found true: not supported"));
        }
    }
    for key in ["modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"] {
        if json.value(key).is_some() {
            return Err(json.error(key, "expected null: not supported"));
        }
    }
    Ok(())
}

/// The alpha of `module` by a pattern, which is the end of its path.
fn alpha_of(own: &JsonFile, module: &str) -> Result<Option<f64>> {
    for key in own.keys() {
        if key.contains(|c: char| !(c.is_alphanumeric() || "._-".contains(c))) {
            return Err(own.error(key, "expected the end of a module's path, found a pattern"));
        }
        if module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
            return own.opt_f64(key);
        }
    }
    Ok(None)
}

/// Matrices that belong to no file.
pub(super) type Added = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// `graph` with the adapters' products, and their matrices by name. `row` is the row of a stored tensor in
/// Hugging Face's order that a part's row is. An adapter for what the graph does not multiply by is an
/// error.
pub(super) fn adapted(
    graph: &Graph,
    adapters: &[Lora],
    row: impl Fn(&Part, usize) -> usize,
) -> Result<(Graph, Added)> {
    let mut added = Added::new();
    let mut used = HashSet::new();
    let graph = graph.with_additions(|name, spec| {
        // Parts of one tensor share its factors.
        let mut tensors: Vec<&str> = spec.parts.iter().map(|p| p.tensor.as_str()).collect();
        tensors.dedup();
        let pairs: Vec<(&str, &Pair, &Lora)> = tensors
            .iter()
            .flat_map(|t| adapters.iter().filter_map(|a| Some((*t, a.pairs.get(*t)?, a))))
            .collect();
        if pairs.is_empty() {
            return Ok(None);
        }
        // All before anything is made of them.
        for (tensor, pair, adapter) in &pairs {
            used.insert((adapter.path.clone(), tensor.to_string()));
            let rows = spec.parts.iter().find(|p| p.tensor == *tensor).map_or(0, Part::tensor_rows);
            pair.check(tensor, (rows, spec.cols), &adapter.path)?;
        }
        let rank: usize = pairs.iter().map(|(_, pair, _)| pair.rank).sum();
        let mut down = Vec::with_capacity(rank * spec.cols);
        let mut up = vec![0.0; spec.rows * rank];
        let mut column = 0;
        for (tensor, pair, _) in pairs {
            down.extend_from_slice(&pair.down);
            let mut start = 0;
            for (p, part) in spec.parts.iter().enumerate() {
                for r in (0..part.rows).filter(|_| part.tensor == tensor) {
                    let place = if spec.interleaved { r * spec.parts.len() + p } else { start + r };
                    let from = &pair.up[row(part, r) * pair.rank..][..pair.rank];
                    up[place * rank + column..][..pair.rank].copy_from_slice(from);
                }
                start += part.rows;
            }
            column += pair.rank;
        }
        let mut matrix = |kind: &str, rows: usize, cols: usize, values: Vec<f32>| {
            let tensor = format!("{name}.lora_{kind}");
            added.insert(tensor.clone(), (vec![rows, cols], values));
            let part = Part { tensor: tensor.clone(), rows, order: RowOrder::Stored, within: None };
            WeightSpec { name: tensor, rows, cols, parts: vec![part], interleaved: false, matrices: 1 }
        };
        Ok(Some((matrix("a", rank, spec.cols, down), matrix("b", spec.rows, rank, up))))
    })?;
    for adapter in adapters {
        let unused = |tensor: &&String| !used.contains(&(adapter.path.clone(), (*tensor).clone()));
        let problems: Vec<String> = adapter
            .pairs
            .keys()
            .filter(unused)
            .map(|tensor| format!("{tensor}: adapted, but the model has no such linear layer"))
            .collect();
        if !problems.is_empty() {
            return Err(Error::Tensors { path: adapter.path.clone(), problems });
        }
    }
    Ok((graph, added))
}

/// An added matrix as a tensor.
pub(super) fn tensor<'a>(added: &'a Added, name: &str) -> Option<HostTensor<'a>> {
    let (shape, values) = added.get(name)?;
    let bytes: &[u8] = bytemuck::cast_slice(values);
    Some(HostTensor { format: WeightFormat::F32, shape: shape.clone(), bytes: bytes.into() })
}
