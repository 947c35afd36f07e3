//! A model's files, opened and checked but not on any device: configuration, graph, tensors
//! in the graph's names and order, and the tokenizer. All that `inspect` and the reference
//! need.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::{Gguf, JsonFile, SafetensorsFolder};
use crate::graph::reference::Source;
use crate::graph::{Graph, Part, RowOrder, VectorId, VectorSpec, WeightId, WeightSpec};
use crate::host::{HostTensor, TensorSource};
use crate::model::grouped::{GroupedFolder, ORDER};
use crate::model::lora::{Added, Lora};
use crate::model::{Config, architecture, lora, names};
use crate::quant;
use crate::tokenizer::Tokenizer;

enum Container {
    Folder(GroupedFolder),
    Gguf(Gguf),
}

impl Container {
    fn source(&self) -> &dyn TensorSource {
        match self {
            Self::Folder(folder) => folder,
            Self::Gguf(gguf) => gguf,
        }
    }
}

/// An opened model.
pub struct ModelFiles {
    path: PathBuf,
    container: Container,
    config: Config,
    graph: Graph,
    /// Whether rows that turn together lie side by side: some converters to GGUF put them so.
    neighbours: bool,
    /// What stands before the names of a model that is part of another, which sees images.
    prefix: Option<&'static str>,
    /// The matrices of adapters.
    added: Added,
}

/// Prefixes that the names of a model's tensors may have as part of another, in place of `model.`.
const PREFIXES: [&str; 2] = ["language_model.model.", "model.language_model."];

impl ModelFiles {
    /// Opens a Hugging Face folder or a `.gguf` file and checks that every tensor is there
    /// with the right shape.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let (container, config) = if metadata.is_dir() {
            let json = JsonFile::open(&path.join("config.json"))?;
            let config = match json.object("text_config")? {
                Some(text) if architecture(json.str("model_type")?).is_err() => Config::from_json(&text)?,
                _ => Config::from_json(&json)?,
            };
            (Container::Folder(GroupedFolder::open(SafetensorsFolder::open(path)?, &json)?), config)
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            let message = "give the folder that holds it, with its config.json".to_string();
            return Err(Error::InvalidOption { name: path.display().to_string(), message });
        } else {
            let gguf = Gguf::open(path)?;
            let table = gguf.tensor("token_embd.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0);
            let vocab =
                if table > 0 { table } else { gguf.strings("tokenizer.ggml.tokens")?.map_or(0, |t| t.len()) };
            let config = Config::from_gguf(&gguf, vocab, |name| gguf.tensor(name).is_some())?;
            (Container::Gguf(gguf), config)
        };
        let architecture = architecture(&config.model_type)?;
        let neighbours = architecture.neighbours && matches!(container, Container::Gguf(_));
        check_extent(&config, container.source(), path)?;
        let graph = (architecture.graph)(&config)?;
        let graph = ordered(graph, &container, path)?;
        let mut files = Self {
            path: path.to_path_buf(),
            container,
            config,
            graph,
            neighbours,
            prefix: None,
            added: Added::new(),
        };
        let names = files.source().names();
        let found = |prefix: &&str| names.contains(&format!("{prefix}embed_tokens.weight").as_str());
        files.prefix = PREFIXES.into_iter().find(found);
        files.check()?;
        if let left @ [first, ..] = files.left_over().as_slice() {
            log::warn!(
                "{}: the model has no place for {} of the tensors, such as {first}: they are not used",
                path.display(),
                left.len(),
            );
            left.iter().for_each(|name| log::debug!("{name} is not used"));
        }
        Ok(files)
    }

    /// The same model with what `adapters` add to its products.
    pub fn with_adapters(mut self, adapters: &[Lora]) -> Result<Self> {
        if !adapters.is_empty() {
            let row = |part: &Part, row: usize| part.first() + turned_row(part.order, row);
            (self.graph, self.added) = lora::adapted(&self.graph, adapters, row)?;
        }
        Ok(self)
    }

    /// Tensors that the model has no place for.
    pub fn left_over(&self) -> Vec<String> {
        let used = self.used();
        let gguf = self.gguf().into_iter().flat_map(Gguf::left_out);
        let all = self.source().names().into_iter().chain(gguf);
        let known = |name: &&str| KNOWN.iter().any(|end| name.ends_with(end));
        all.filter(|name| !used.contains(*name) && !known(name)).map(str::to_string).collect()
    }

    /// The tensors that the graph asks for.
    fn used(&self) -> HashSet<String> {
        let matrices = self.graph.weights.iter().flat_map(|w| &w.parts);
        let parts = matrices.chain(self.graph.vectors.iter().flat_map(|v| &v.parts));
        parts.map(|p| self.stored_name(&p.tensor)).collect()
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The inputs of a matrix in the order in which its columns come, where that is another.
    pub fn input_order(&self, name: &str) -> Option<&[u32]> {
        match &self.container {
            Container::Folder(folder) => folder.input_order(name),
            Container::Gguf(_) => None,
        }
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.container {
            Container::Gguf(gguf) => Some(gguf),
            Container::Folder(_) => None,
        }
    }

    /// Format and shape of all tensors in the files, under the files' own names.
    pub fn tensors(&self) -> Vec<(&str, WeightFormat, Vec<usize>)> {
        let source = self.source();
        let describe = |name| {
            let (format, shape) = source.describe(name)?;
            Some((name, format, shape))
        };
        source.names().into_iter().filter_map(describe).collect()
    }

    /// The tokenizer; an error if there is none.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.container {
            Container::Folder(_) => Tokenizer::from_folder(&self.path),
            Container::Gguf(gguf) => Tokenizer::from_gguf(&self.path, gguf.vocab()?),
        }
    }

    /// The tensor that Hugging Face calls `name`.
    pub fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        if let Some(added) = lora::tensor(&self.added, name) {
            return Ok(added);
        }
        let stored = self.stored_name(name);
        self.source().tensor(&stored).ok_or_else(|| self.missing(&stored))
    }

    /// Format and shape of the tensor that Hugging Face calls `name`.
    pub fn describe(&self, name: &str) -> Result<(WeightFormat, Vec<usize>)> {
        if let Some((shape, _)) = self.added.get(name) {
            return Ok((WeightFormat::F32, shape.clone()));
        }
        let stored = self.stored_name(name);
        self.source().describe(&stored).ok_or_else(|| self.missing(&stored))
    }

    fn missing(&self, stored: &str) -> Error {
        self.format_problem(stored).unwrap_or_else(|| Error::Tensors {
            path: self.path.clone(),
            problems: vec![format!("{stored}: missing")],
        })
    }

    /// Whether a tensor is an adapter's.
    pub fn is_added(&self, name: &str) -> bool {
        self.added.contains_key(name)
    }

    /// The formats of a matrix's parts.
    pub fn formats(&self, spec: &WeightSpec) -> Result<Vec<WeightFormat>> {
        spec.parts.iter().map(|part| Ok(self.describe(&part.tensor)?.0)).collect()
    }

    /// Row of the stored tensor that is row `row` of `part` in a GGUF file.
    pub(super) fn gguf_row(&self, part: &Part, row: usize) -> usize {
        let neighbours = architecture(&self.config.model_type).is_ok_and(|a| a.neighbours);
        if neighbours { self.stored_row(part, row) } else { row }
    }

    /// Row of the stored tensor that is row `row` of `part`.
    pub fn stored_row(&self, part: &Part, row: usize) -> usize {
        part.first() + if self.neighbours { row } else { turned_row(part.order, row) }
    }

    fn source(&self) -> &dyn TensorSource {
        self.container.source()
    }

    fn format_problem(&self, stored: &str) -> Option<Error> {
        match &self.container {
            Container::Folder(folder) => folder.format_problem(stored),
            Container::Gguf(gguf) => gguf.format_problem(stored),
        }
    }

    /// Floats of eight bits may come with scales in tensors of their own, which nothing here reads.
    fn check_unscaled(&self, name: &str, stored: WeightFormat) -> Result<()> {
        let eight = matches!(stored, WeightFormat::F8_E4M3 | WeightFormat::F8_E5M2);
        let scale = ["_scale", "_scale_inv"].map(|end| format!("{name}{end}"));
        match scale.iter().find(|scale| eight && self.source().describe(scale).is_some()) {
            None => Ok(()),
            Some(scale) => Err(Error::UnsupportedFormat {
                name: name.to_string(),
                format: format!("{stored} with scales in '{scale}'"),
                supported: format!("{stored} without, {}", WeightFormat::supported()),
            }),
        }
    }

    pub(super) fn stored_name(&self, name: &str) -> String {
        match &self.container {
            Container::Folder(_) => match (self.prefix, name.strip_prefix("model.")) {
                (Some(prefix), Some(rest)) => format!("{prefix}{rest}"),
                (Some("language_model.model."), None) => format!("language_model.{name}"),
                _ => name.to_string(),
            },
            Container::Gguf(_) => {
                let own = architecture(&self.config.model_type).map_or(&[][..], |a| a.modules);
                names::gguf(own, name)
            }
        }
    }

    /// Compares all tensors with what the graph asks for and reports every difference.
    fn check(&self) -> Result<()> {
        let graph = &self.graph;
        let matrices =
            graph.weights.iter().flat_map(|w| w.parts.iter().map(|p| (p, vec![p.tensor_rows(), w.cols])));
        let vectors = graph.vectors.iter().flat_map(|v| v.parts.iter().map(|p| (p, vec![p.tensor_rows()])));
        let mut problems = Vec::new();
        for (part, expected) in matrices.chain(vectors) {
            let stored = self.stored_name(&part.tensor);
            match self.source().describe(&stored) {
                Some((format, shape)) if fits(&shape, &expected) => {
                    self.check_unscaled(&stored, format)?;
                }
                Some((_, shape)) => {
                    problems.push(format!("{stored}: expected shape {expected:?}, found {shape:?}"));
                }
                None => match self.format_problem(&stored) {
                    Some(error) => return Err(error),
                    None => problems.push(format!("{stored}: missing, expected shape {expected:?}")),
                },
            }
        }
        problems.extend(self.unused_biases());
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Tensors { path: self.path.clone(), problems })
    }

    /// Biases that the graph has no place for: without them the text would be wrong, unless they are
    /// zero, as GPTQ's tools write them.
    fn unused_biases(&self) -> Vec<String> {
        let used = self.used();
        let own = |name: &&str| self.prefix.is_none_or(|prefix| name.starts_with(prefix));
        let names = self.source().names().into_iter().filter(own);
        names
            .filter(|name| name.ends_with(".bias") && !used.contains(*name) && !self.is_zero(name))
            .map(|name| format!("{name}: found, but the configuration asks for no such bias"))
            .collect()
    }

    fn is_zero(&self, name: &str) -> bool {
        let tensor = self.source().tensor(name).filter(|tensor| tensor.format.block_len() == 1);
        tensor.is_some_and(|tensor| tensor.bytes.iter().all(|b| *b == 0))
    }

    /// The values of a vector in the graph's order.
    pub fn vector_values(&self, id: VectorId) -> Result<Vec<f32>> {
        let spec = &self.graph.vectors[id.0];
        let mut columns = Vec::new();
        for part in &spec.parts {
            let tensor = self.tensor(&part.tensor)?;
            let mut stored = vec![0.0; tensor.len()];
            quant::decode(tensor.format, &tensor.bytes, &mut stored);
            stored.iter_mut().for_each(|value| *value = (*value + spec.shift) * spec.scale);
            columns.push((0..part.rows).map(|r| stored[self.stored_row(part, r)]).collect::<Vec<_>>());
        }
        if !spec.interleaved {
            return Ok(columns.concat());
        }
        let rows = columns.first().map_or(0, Vec::len);
        Ok((0..rows).flat_map(|r| columns.iter().map(move |c| c[r])).collect())
    }
}

/// Tensors, and weights of experts, that a configuration may ask for whatever the files hold: so few that
/// all those that are missing can be listed.
const FEW: usize = 1 << 15;

/// Refuses a configuration that asks for far more than `source` holds, before there is a graph that
/// names all of it: a few bytes can say that there are millions of tensors.
fn check_extent(config: &Config, source: &dyn TensorSource, path: &Path) -> Result<()> {
    let problem = |message: String| Error::Tensors { path: path.to_path_buf(), problems: vec![message] };
    let (tensors, weights) = config.least();
    let names = source.names();
    if tensors > names.len().max(FEW) {
        let found = names.len();
        return Err(problem(format!("the configuration asks for at least {tensors} tensors, found {found}")));
    }
    // Tensors of unknown formats, of which an error tells more, count as all that is wanted.
    let stored = |name: &str| source.describe(name).map_or(weights, |(_, shape)| shape.iter().product());
    let found = names.into_iter().map(stored).fold(0usize, usize::saturating_add);
    if weights > found.max(FEW) {
        return Err(problem(format!(
            "the configuration asks for experts of {weights} weights, found {found} in all"
        )));
    }
    Ok(())
}

/// Row of a tensor of Hugging Face's that is row `row` in an order.
fn turned_row(order: RowOrder, row: usize) -> usize {
    match order {
        RowOrder::Rotary { head_dim, rotated } if row % head_dim < rotated => {
            let (head, within) = (row / head_dim, row % head_dim);
            head * head_dim + within / 2 + within % 2 * (rotated / 2)
        }
        _ => row,
    }
}

/// Ends of names that are no news: what was computed from the configuration, and read by other means.
const KNOWN: [&str; 5] = [
    "rotary_emb.inv_freq",
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
    ".g_idx",
];

/// Whether a tensor has the rows and columns that are expected. Vectors may be stored in rows, such as
/// the factors of heads, and matrices one after the other, such as those of experts.
fn fits(shape: &[usize], expected: &[usize]) -> bool {
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let columns = expected.len() < 2 || shape.last() == expected.last();
    shape.len() >= expected.len() && columns && values(shape) == values(expected)
}

/// Puts the inputs of packed matrices in the order of their columns. Matrices that are joined share
/// their inputs, and so one order.
fn ordered(graph: Graph, container: &Container, path: &Path) -> Result<Graph> {
    let Container::Folder(folder) = container else { return Ok(graph) };
    graph.with_ordered_inputs(|spec| {
        let order = |part: &Part| folder.input_order(&part.tensor);
        let Some(first) = spec.parts.first() else { return Ok(None) };
        if let Some(other) = spec.parts.iter().find(|part| order(part) != order(first)) {
            return Err(Error::Tensors {
                path: path.to_path_buf(),
                problems: vec![format!(
                    "{} and {}: expected one order of inputs (g_idx), found two",
                    first.tensor, other.tensor
                )],
            });
        }
        Ok(order(first).map(|inputs| {
            let tensor = format!("{}{ORDER}", first.tensor);
            let part = Part { tensor, rows: inputs.len(), order: RowOrder::Stored, within: None };
            VectorSpec {
                name: format!("{}_order", spec.name),
                parts: vec![part],
                interleaved: false,
                shift: 0.0,
                scale: 1.0,
            }
        }))
    })
}

impl Source for ModelFiles {
    fn weight(&self, graph: &Graph, id: WeightId) -> Result<Vec<f32>> {
        let spec = &graph.weights[id.0];
        let mut out = vec![0.0; spec.rows * spec.cols];
        let mut start = 0;
        for (p, part) in spec.parts.iter().enumerate() {
            let tensor = self.tensor(&part.tensor)?;
            let row_bytes = tensor.bytes.len() / part.tensor_rows().max(1);
            for row in 0..part.rows {
                let n = spec.matrix_parts();
                let place = match spec.interleaved {
                    true => p / n * spec.matrix_rows() + row * n + p % n,
                    false => start + row,
                };
                let bytes = &tensor.bytes[self.stored_row(part, row) * row_bytes..][..row_bytes];
                quant::decode(tensor.format, bytes, &mut out[place * spec.cols..][..spec.cols]);
            }
            start += part.rows;
        }
        Ok(out)
    }

    fn vector(&self, _graph: &Graph, id: VectorId) -> Result<Vec<f32>> {
        self.vector_values(id)
    }
}
