// Rows: only the tokens whose logits are wanted.
fn n_rows() -> u32 { return n_outputs(); }

fn source_row(i: u32) -> u32 { return output_token(i); }
