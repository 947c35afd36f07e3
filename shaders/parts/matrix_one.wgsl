// Matrices: one, for all rows.

// What a layer of the grid works on: rows start .. end - 1 of the result, by the matrix that begins at
// a row of the weights.
struct Layer {
    start: u32,
    end: u32,
    weights: u32,
}

fn layer_of(z: u32, size: u32) -> Layer { return Layer(z * size, min((z + 1u) * size, n_rows()), 0u); }

// The row of the result that is the i-th to be computed, and the row of x that it comes from.
fn result_row(i: u32) -> u32 { return i; }

fn input_row(i: u32) -> u32 { return i; }
