//! The program: arguments in, exit code out. See `wharf::cli`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "testkit")]
    return wharf::testkit::verbs::main();
    #[cfg(not(feature = "testkit"))]
    wharf::cli::main()
}
