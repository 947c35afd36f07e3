//! A GGUF file in other formats.

use std::io::Write;
use std::path::Path;

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::{Gguf, GgufWriter};
use crate::host::{HostTensor, TensorSource};
use crate::model::weights::convert;
use crate::{native, quant};

/// Which formats a file's matrices are to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantize {
    /// Of most matrices.
    pub format: WeightFormat,
    /// Of the embedding; `format` if none is named.
    pub embedding: Option<WeightFormat>,
    /// Of the matrix of the logits, or of the embedding where that serves for both; by default
    /// Q6_K for smaller formats, whose errors there would meet every logit, and else `format`.
    pub output: Option<WeightFormat>,
    /// Whether tensors that are quantised already may be quantised once more.
    pub requantize: bool,
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// About how many bytes are converted at a time.
const CHUNK: usize = 4 << 20;

/// llama.cpp's number for files that hold mostly `format`.
fn file_type(format: WeightFormat) -> u32 {
    match format {
        // The writer refuses floats of eight bits, which GGML does not have.
        WeightFormat::F8_E4M3 | WeightFormat::F8_E5M2 | WeightFormat::F32 => 0,
        WeightFormat::F16 => 1,
        WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 3,
        WeightFormat::Q8_0 => 7,
        WeightFormat::Q5_0 => 8,
        WeightFormat::Q5_1 => 9,
        WeightFormat::Q2_K => 10,
        WeightFormat::Q3_K => 11,
        WeightFormat::Q4_K => 14,
        WeightFormat::Q5_K => 16,
        WeightFormat::Q6_K => 18,
        WeightFormat::IQ4_NL => 25,
        WeightFormat::IQ4_XS => 30,
        WeightFormat::BF16 => 32,
        WeightFormat::MXFP4 => 38,
    }
}

impl Quantize {
    /// The format of a tensor in the new file.
    fn wanted(&self, name: &str, tensor: &HostTensor<'_>, tied: bool) -> Result<WeightFormat> {
        let &[.., rows, cols] = tensor.shape.as_slice() else { return Ok(tensor.format) };
        // Norms and biases may be stored as a single row.
        if rows < 2 || !name.ends_with(".weight") {
            return Ok(tensor.format);
        }
        let small =
            self.format.block_bytes() * 256 / self.format.block_len() < WeightFormat::Q6_K.block_bytes();
        let output = self.output.unwrap_or(if small { WeightFormat::Q6_K } else { self.format });
        let wanted = match name {
            OUTPUT => output,
            EMBEDDING if tied => self.embedding.unwrap_or(output),
            EMBEDDING => self.embedding.unwrap_or(self.format),
            _ => self.format,
        };
        let format = quant::fitting(wanted, cols);
        if format != tensor.format && tensor.format.block_len() > 1 && !self.requantize {
            let message = format!(
                "{name} is stored as {}, and quantising it once more loses more than once would: \
                 begin with a file in f32, f16 or bf16, or allow it (--requantize)",
                tensor.format
            );
            return Err(Error::option("quantize", message));
        }
        Ok(format)
    }

    /// Writes `from` with other formats to `out`, which errors call `path`. `progress` hears the
    /// tensors done and all. A file with tensors of whole numbers is refused: they would be lost.
    pub fn write(
        &self,
        from: &Gguf,
        out: &mut impl Write,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let tensors: Vec<(&str, HostTensor<'_>)> =
            from.names().into_iter().filter_map(|name| Some((name, from.tensor(name)?))).collect();
        if let Some(problem) = from.left_out().find_map(|name| from.format_problem(name)) {
            return Err(problem);
        }
        let tied = from.tensor(OUTPUT).is_none();
        let mut writer = GgufWriter::default();
        // A fixed number of its own describes the new file.
        let own = ["general.file_type", "general.quantization_version", "general.alignment"];
        from.keys().filter(|key| !own.contains(key)).for_each(|key| writer.copy(from, key));
        writer.u32(own[0], file_type(self.format));
        writer.u32(own[1], 2);
        let formats = tensors
            .iter()
            .map(|(name, tensor)| self.wanted(name, tensor, tied))
            .collect::<Result<Vec<_>>>()?;
        for ((name, tensor), format) in tensors.iter().zip(&formats) {
            writer.tensor(name, &tensor.shape, *format);
        }
        let all = tensors.len() as u64;
        writer.write(path, out, |i, out| {
            let (name, tensor) = &tensors[i];
            let failed = |e| Error::io(path, e);
            if formats[i] == tensor.format {
                out.write_all(tensor.bytes).map_err(failed)?;
            } else {
                let row_bytes = tensor.bytes.len() / (tensor.len() / tensor.shape.last().unwrap_or(&1));
                let rows: Vec<&[u8]> = tensor.bytes.chunks_exact(row_bytes).collect();
                for rows in rows.chunks((CHUNK / row_bytes).max(1)) {
                    let convert = |row: &&[u8]| convert(tensor, from.path(), name, row, formats[i]);
                    for (_, row) in native::parallel(rows, convert) {
                        out.write_all(&row?).map_err(failed)?;
                    }
                }
            }
            progress(i as u64 + 1, all);
            Ok(())
        })
    }
}
