//! The `portcullis` binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    match portcullis::cli::parse(std::env::args_os()) {
        Ok(cli) => portcullis::cli::run(&cli),
        Err(code) => std::process::ExitCode::from(code),
    }
}
