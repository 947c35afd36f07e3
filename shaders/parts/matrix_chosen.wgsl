// Matrices: an expert's, for each token and each of the CHOSEN experts that `route` chose for it. A
// layer of the grid is one of these. SHARE of them read the same row of x.
@group(0) @binding(4) var<storage, read> routes: array<f32>;  // [T, numbers and weights]

const ROUTE_PITCH = (2u * CHOSEN + 31u) / 32u * 32u;

// What a layer of the grid works on: rows start .. end - 1 of the result, by the matrix that begins at
// a row of the weights. None, if another shard has the expert.
struct Layer {
    start: u32,
    end: u32,
    weights: u32,
}

fn layer_of(z: u32, size: u32) -> Layer {
    let expert = u32(routes[z / CHOSEN * ROUTE_PITCH + z % CHOSEN]) - p.matrix;
    return Layer(z, select(z, z + 1u, expert < p.matrices), expert * p.each);
}

// The row of the result that is the i-th to be computed, and the row of x that it comes from.
fn result_row(i: u32) -> u32 { return i; }

fn input_row(i: u32) -> u32 { return i / SHARE; }
