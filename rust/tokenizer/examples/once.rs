use abyssal_tokenizer::Tokenizer;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut a = std::env::args().skip(1);
    let json = std::fs::read(a.next().ok_or("")?)?;
    let text = std::fs::read_to_string(a.next().ok_or("")?)?;
    let t = Tokenizer::from_json(&json)?;
    let n: usize = a.next().map_or(5, |n| n.parse().unwrap_or(5));
    for _ in 0..n {
        let mut ids = Vec::new();
        t.encode(&text, true, &mut || false, &mut ids)?;
        if n < 6 {
            println!("{}", ids.len());
        }
    }
    Ok(())
}
