//! Speed of one thread on text files, cold (a fresh tokenizer) and warm.
//!
//! Usage: `cargo run --release -p abyssal-tokenizer --example encode_speed TOKENIZER_JSON TEXT...`

use std::time::Instant;

use abyssal_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let json = std::fs::read(arguments.next().ok_or("no tokenizer.json")?)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::from_json(&json)?;
    println!("load {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(tokenizer);
    for path in arguments {
        let text = std::fs::read_to_string(&path)?;
        let mut speeds = [0.0_f64; 2];
        let mut count = 0;
        for _ in 0..3 {
            let tokenizer = Tokenizer::from_json(&json)?;
            for round in 0..8 {
                let mut ids = Vec::new();
                let start = Instant::now();
                tokenizer.encode(&text, true, &mut || false, &mut ids)?;
                let speed = text.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
                let best = &mut speeds[usize::from(round > 0)];
                *best = best.max(speed);
                count = ids.len();
            }
        }
        println!(
            "{path}: {count} tokens, cold {:.1} MB/s, warm {:.1} MB/s",
            speeds[0], speeds[1]
        );
    }
    Ok(())
}
