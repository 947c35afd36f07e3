//! Reads AMD assembly as RADV prints it: labels at the start of a line, one instruction on each line below,
//! and after a semicolon its encoding.

use std::collections::BTreeMap;

/// Instructions by what they do. Widths are in bits.
#[derive(Debug, Default, PartialEq)]
pub struct Counts {
    /// Operations of the vector unit; an instruction that issues two of them counts twice.
    pub vector: usize,
    /// Those that multiply and add f32 values.
    pub multiply_add: usize,
    /// Products of four bytes with four bytes.
    pub dot4: usize,
    /// Products of matrices.
    pub wmma: usize,
    /// Loads from buffers by vector instructions, by width.
    pub loads: BTreeMap<u32, usize>,
    /// Loads from workgroup memory, by width.
    pub shared_loads: BTreeMap<u32, usize>,
    /// Accesses to scratch memory.
    pub scratch: usize,
}

/// The instructions of a text: mnemonics, two for one that issues two operations.
fn mnemonics(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split(';').next().unwrap_or_default();
    code.split("::").filter_map(|operation| operation.split_whitespace().next())
}

/// Bits that a load brings, from the end of its name: RDNA3's `b128`, the older `dwordx4`.
fn width(name: &str) -> u32 {
    let sizes = [
        ("2addr_b64", 128),
        ("2addr_b32", 64),
        ("read2_b64", 128),
        ("read2_b32", 64),
        ("b128", 128),
        ("dwordx4", 128),
        ("b96", 96),
        ("dwordx3", 96),
        ("b64", 64),
        ("dwordx2", 64),
        ("b32", 32),
        ("dword", 32),
        ("b16", 16),
        ("u16", 16),
        ("i16", 16),
        ("ushort", 16),
        ("sshort", 16),
        ("u8", 8),
        ("i8", 8),
        ("ubyte", 8),
        ("sbyte", 8),
    ];
    sizes.into_iter().find(|(part, _)| name.contains(part)).map_or(0, |(_, bits)| bits)
}

impl Counts {
    /// Counts the instructions of `lines`.
    pub fn of(lines: &[&str]) -> Self {
        let mut counts = Self::default();
        for name in lines.iter().filter(|l| !is_label(l)).flat_map(|l| mnemonics(l)) {
            counts.vector += usize::from(name.starts_with("v_"));
            let adds =
                ["v_fma_f32", "v_fmac_f32", "v_mad_f32", "v_mac_f32", "v_dual_fmac_f32", "v_fma_mix_f32"];
            counts.multiply_add += usize::from(adds.iter().any(|add| name.starts_with(add)));
            counts.dot4 += usize::from(name.starts_with("v_dot4"));
            counts.wmma += usize::from(name.starts_with("v_wmma"));
            counts.scratch += usize::from(name.starts_with("scratch_"));
            if name.starts_with("buffer_load") || name.starts_with("global_load") {
                *counts.loads.entry(width(name)).or_default() += 1;
            }
            if name.starts_with("ds_load") || name.starts_with("ds_read") {
                *counts.shared_loads.entry(width(name)).or_default() += 1;
            }
        }
        counts
    }
}

fn is_label(line: &str) -> bool {
    line.trim_end().ends_with(':')
}

/// The loop with the most multiply-adds, without the loops inside it: from a label to the last branch back.
pub fn inner_loop(assembly: &str) -> Vec<&str> {
    let lines: Vec<&str> = assembly.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut loops: BTreeMap<usize, usize> = BTreeMap::new();
    for (end, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[name, target, ..] = words.as_slice() else { continue };
        if !name.starts_with("s_branch") && !name.starts_with("s_cbranch") {
            continue;
        }
        let back = lines[..end].iter().rposition(|l| l.trim_end().strip_suffix(':') == Some(target));
        if let Some(start) = back {
            loops.insert(start, end);
        }
    }
    let own = |start: usize, end: usize| -> Vec<&str> {
        let inside = |at: &usize| loops.range(start + 1..end).any(|(s, e)| (s..=e).contains(&at));
        (start..=end).filter(|at| !inside(at)).map(|at| lines[at]).collect()
    };
    let bodies = loops.iter().map(|(&start, &end)| own(start, end));
    bodies
        .max_by_key(|body| {
            let counts = Counts::of(body);
            // A product of matrices of 16 by 16 is 128 multiply-adds for each of 32 lanes.
            (counts.multiply_add + counts.dot4 + 128 * counts.wmma, counts.vector)
        })
        .unwrap_or_default()
}
