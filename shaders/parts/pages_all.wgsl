// Pages: a layer that sees all positions has a page for each, as the sequence's table says.
fn layer_page(sequence: u32, n: u32) -> u32 { return page_of(sequence, n); }
