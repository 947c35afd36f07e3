// Matrices: an expert's, for up to a layer's size of the rows that chose it, as `group` has sorted them.
// SHARE rows of the result read the same row of x.
@group(0) @binding(4) var<storage, read> routes: array<u32>;  // see `group.wgsl`

// What a layer of the grid works on: rows start .. end - 1 of those sorted, by the matrix that begins
// at a row of the weights. None beyond the last group, and if another shard has the expert.
struct Layer {
    start: u32,
    end: u32,
    weights: u32,
}

fn layer_of(z: u32, size: u32) -> Layer {
    let at = 4u + z * 4u;
    let expert = routes[at] - p.matrix;
    let here = z < routes[0] && expert < p.matrices;
    return Layer(routes[at + 1u], select(routes[at + 1u], routes[at + 2u], here), expert * p.each);
}

// The row of the result that is the i-th to be computed, and the row of x that it comes from.
fn result_row(i: u32) -> u32 { return routes[routes[1] + i]; }

fn input_row(i: u32) -> u32 { return result_row(i) / SHARE; }
