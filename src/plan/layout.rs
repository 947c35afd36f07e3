//! How a matrix is cut into shards: runs of rows of one format that fit one binding. Joined
//! tensors of different formats become shards of their own, and so do the rows that exceed
//! what the adapter binds.

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::graph::WeightSpec;
use crate::kernels::pack::{Order, Planes};
use crate::kernels::tuning;
use crate::shape::padded;

/// Rows of one format in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Where the planes lie.
    pub planes: Planes,
    /// The parts that its rows come from, which follow one another or alternate.
    pub parts: Vec<usize>,
    /// Whether they alternate.
    pub interleaved: bool,
    /// First row, counted over those parts.
    pub start: usize,
    /// Rows that hold weights; of several matrices, those of each.
    pub rows: usize,
    /// Rows that a mat-vec computes: some zero rows more where the output is padded.
    pub computed: usize,
    /// The first of the matrices that it holds, and how many: the one, or some experts'.
    pub matrices: (usize, usize),
    /// Rows from one matrix to the next.
    pub each: usize,
    /// Row of the matrix that the first row is.
    pub first: usize,
    /// Rows of the matrix from one row to the next.
    pub stride: usize,
}

impl Shard {
    /// Where row `r` of the shard comes from: part, and row of that part. None for padding.
    pub fn source(&self, spec: &WeightSpec, r: usize) -> Option<(usize, usize)> {
        let (matrix, r) = (r / self.each, r % self.each);
        if r >= self.rows {
            return None;
        }
        let mut row = self.start + r;
        let n = self.parts.len() / self.matrices.1;
        let parts = self.parts.get(matrix * n..)?.get(..n)?;
        if self.interleaved {
            return Some((parts[row % n], row / n));
        }
        for &part in parts {
            match row.checked_sub(spec.parts[part].rows) {
                None => return Some((part, row)),
                Some(rest) => row = rest,
            }
        }
        None
    }
}

/// The shards of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightLayout {
    /// In the order of their rows, or of their parts where those alternate.
    pub shards: Vec<Shard>,
}

impl WeightLayout {
    /// Cuts `spec`, whose parts are stored in `formats`, for an adapter.
    pub fn new(spec: &WeightSpec, formats: &[WeightFormat], caps: &Caps) -> Result<Self> {
        if formats.len() != spec.parts.len() {
            let message = format!("{} formats for {} parts", formats.len(), spec.parts.len());
            return Err(Error::shape(&spec.name, message));
        }
        if spec.matrices > 1 {
            return Self::of_experts(spec, formats, caps);
        }
        let mixed = formats.windows(2).any(|w| w[0] != w[1]);
        // Zero rows for the padding of the result: of the whole rows, or, where parts alternate
        // and become one output, of as many rows of each.
        let parts = if spec.interleaved { spec.parts.len() } else { 1 };
        let extra = parts * padded(spec.rows / parts) - spec.rows;
        let mut layout = Self { shards: Vec::new() };
        if spec.interleaved && !mixed {
            let all: Vec<usize> = (0..spec.parts.len()).collect();
            layout.cut(spec, formats[0], &all, (0, 1), extra, caps)?;
        } else if spec.interleaved {
            let n = spec.parts.len();
            for (part, &format) in formats.iter().enumerate() {
                // The zero rows alternate between the parts, too.
                layout.cut(spec, format, &[part], (part, n), (extra + n - 1 - part) / n, caps)?;
            }
        } else {
            let mut first = 0;
            let mut parts: Vec<usize> = (0..spec.parts.len()).collect();
            while let Some(&lead) = parts.first() {
                let same = parts.iter().take_while(|&&p| formats[p] == formats[lead]).count();
                let run: Vec<usize> = parts.drain(..same).collect();
                let rows: usize = run.iter().map(|&p| spec.parts[p].rows).sum();
                let extra = if parts.is_empty() { extra } else { 0 };
                layout.cut(spec, formats[lead], &run, (first, 1), extra, caps)?;
                first += rows;
            }
        }
        Ok(layout)
    }

    /// Cuts a run of parts of one format; `extra` zero rows follow it.
    fn cut(
        &mut self,
        spec: &WeightSpec,
        format: WeightFormat,
        parts: &[usize],
        (first, stride): (usize, usize),
        extra: usize,
        caps: &Caps,
    ) -> Result<()> {
        let rows: usize = parts.iter().map(|&p| spec.parts[p].rows).sum();
        let limit = caps.max_storage_binding.min(caps.max_buffer) as usize;
        // Rows that fit one binding; a little less than the limit, for the alignment between the planes.
        let fitting = |order: Order| {
            let align = order.align();
            let row_bytes = Planes::new(format, order, align, spec.cols).bytes() / align;
            (limit.saturating_sub(512) / row_bytes.max(1)) / align * align
        };
        let order = tuning::order(caps);
        let order = if fitting(order) == 0 { Order::Rows } else { order };
        let most = fitting(order);
        if most == 0 {
            return Err(Error::OutOfMemory {
                what: format!("{} rows of {}", order.align(), spec.name),
                need: Planes::new(format, order, order.align(), spec.cols).bytes() as u64,
                limit: limit as u64,
                help: "choose another device".to_string(),
            });
        }
        // A last shard may hold nothing but zero rows.
        for start in (0..rows + extra).step_by(most) {
            let computed = (rows + extra - start).min(most);
            self.shards.push(Shard {
                planes: Planes::new(format, order, computed, spec.cols),
                parts: parts.to_vec(),
                interleaved: spec.interleaved && parts.len() > 1,
                start,
                rows: rows.saturating_sub(start).min(computed),
                computed,
                matrices: (0, 1),
                each: computed.next_multiple_of(order.align()),
                first: first + start * stride,
                stride,
            });
        }
        Ok(())
    }

    /// Cuts the matrices of experts: whole ones, each with the zero rows that its own result needs.
    fn of_experts(spec: &WeightSpec, formats: &[WeightFormat], caps: &Caps) -> Result<Self> {
        let n = spec.matrix_parts();
        let mut same = formats.chunks(n);
        let first = same.next().unwrap_or_default();
        if n > 1 && !spec.interleaved || same.any(|others| others != first) {
            let message = "experts' matrices must be of one format, and their parts alternate";
            return Err(Error::shape(&spec.name, message));
        }
        let mixed = first.windows(2).any(|w| w[0] != w[1]);
        let kinds: Vec<Vec<usize>> =
            if mixed { (0..n).map(|kind| vec![kind]).collect() } else { vec![(0..n).collect()] };
        let mut layout = Self { shards: Vec::new() };
        for kind in kinds {
            let format = first[kind[0]];
            let rows = spec.matrix_rows() / n * kind.len();
            let computed = padded(spec.matrix_rows() / n) * kind.len();
            let planes = |order: Order, matrices: usize| {
                let each = computed.next_multiple_of(order.align());
                (each, Planes::new(format, order, each * matrices, spec.cols))
            };
            let limit = caps.max_storage_binding.min(caps.max_buffer) as usize;
            let fitting = |order: Order| {
                let most = (1..=spec.matrices).rev();
                most.into_iter().find(|count| planes(order, *count).1.bytes() <= limit)
            };
            let order = tuning::order(caps);
            let fits = fitting(order).map(|count| (order, count));
            let fits = fits.or_else(|| fitting(Order::Rows).map(|count| (Order::Rows, count)));
            let Some((order, most)) = fits else {
                return Err(Error::OutOfMemory {
                    what: format!("the matrix of an expert of {}", spec.name),
                    need: planes(Order::Rows, 1).1.bytes() as u64,
                    limit: limit as u64,
                    help: "choose another device".to_string(),
                });
            };
            for start in (0..spec.matrices).step_by(most) {
                let count = most.min(spec.matrices - start);
                let (each, planes) = planes(order, count);
                let parts = (start..start + count).flat_map(|m| kind.iter().map(move |k| m * n + k));
                layout.shards.push(Shard {
                    planes,
                    parts: parts.collect(),
                    interleaved: kind.len() > 1,
                    start: 0,
                    rows,
                    computed,
                    matrices: (start, count),
                    each,
                    first: if mixed { kind[0] } else { 0 },
                    stride: if mixed { n } else { 1 },
                });
            }
        }
        Ok(layout)
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| s.planes.bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Part, RowOrder};

    fn spec(rows: &[usize], cols: usize, interleaved: bool) -> WeightSpec {
        let part = |(i, &rows): (usize, &usize)| Part {
            tensor: format!("t{i}"),
            rows,
            order: RowOrder::Stored,
            within: None,
        };
        WeightSpec {
            name: "w".into(),
            rows: rows.iter().sum(),
            cols,
            parts: rows.iter().enumerate().map(part).collect(),
            interleaved,
            matrices: 1,
        }
    }

    /// Every row of the matrix is in just one shard, and comes from the right place.
    fn check(spec: &WeightSpec, formats: &[WeightFormat], caps: &Caps) -> WeightLayout {
        let layout = WeightLayout::new(spec, formats, caps).unwrap();
        let n = if spec.interleaved { spec.parts.len() } else { 1 };
        let mut seen = vec![None; n * padded(spec.rows / n)];
        for shard in &layout.shards {
            assert!(shard.planes.bytes() as u64 <= caps.max_storage_binding.min(caps.max_buffer));
            for r in 0..shard.computed {
                let place = &mut seen[shard.first + r * shard.stride];
                assert!(place.is_none());
                *place = Some(shard.source(spec, r));
            }
        }
        for (row, found) in seen.into_iter().enumerate() {
            let mut at = row;
            let expected = if row >= spec.rows {
                None
            } else if spec.interleaved {
                Some((row % n, row / n))
            } else {
                let part = spec
                    .parts
                    .iter()
                    .position(|p| {
                        at < p.rows || {
                            at -= p.rows;
                            false
                        }
                    })
                    .unwrap();
                Some((part, at))
            };
            assert_eq!(found, Some(expected), "row {row}");
        }
        layout
    }

    #[test]
    fn joined_tensors_of_one_format_are_one_shard() {
        let layout = check(&spec(&[24, 8, 8], 64, false), &[WeightFormat::F32; 3], &Caps::baseline());
        assert_eq!(layout.shards.len(), 1);
    }

    #[test]
    fn tensors_of_other_formats_are_shards_of_their_own() {
        use WeightFormat::{Q4_0, Q8_0};
        let layout = check(&spec(&[24, 8, 8], 64, false), &[Q4_0, Q4_0, Q8_0], &Caps::baseline());
        assert_eq!(layout.shards.len(), 2);
        let layout = check(&spec(&[20, 20], 64, true), &[Q4_0, Q8_0], &Caps::baseline());
        assert_eq!(layout.shards.len(), 2);
        check(&spec(&[21, 21, 21], 64, true), &[Q4_0, Q8_0, Q4_0], &Caps::baseline());
    }

    #[test]
    fn a_matrix_larger_than_a_binding_is_split_by_rows() {
        // Bindings of 8, 16 and 248 rows.
        for limit in [2 << 10, 4 << 10, 63 << 10] {
            let caps = Caps { max_storage_binding: limit, max_buffer: 1 << 16, ..Caps::baseline() };
            for rows in 1..300 {
                check(&spec(&[rows], 100, false), &[WeightFormat::Q8_0], &caps);
                check(
                    &spec(&[rows, rows], 100, true),
                    &[WeightFormat::F16; 2],
                    &Caps { max_storage_binding: 1 << 14, ..caps.clone() },
                );
            }
        }
    }

    #[test]
    fn rows_too_long_for_bundles_lie_in_rows() {
        let order = |cols| {
            let layout = check(&spec(&[40], cols, false), &[WeightFormat::F32], &Caps::lavapipe());
            layout.shards[0].planes.order
        };
        assert_eq!((order(1_000_000), order(1_100_000)), (Order::Bundles, Order::Rows));
    }

    #[test]
    fn rows_that_exceed_a_binding_are_refused() {
        let caps = Caps { max_storage_binding: 1 << 10, ..Caps::baseline() };
        let error = WeightLayout::new(&spec(&[8], 1000, false), &[WeightFormat::F32], &caps).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }
}
