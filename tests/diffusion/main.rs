//! The mathematics of `unmask::diffusion` against brute force: explicit K×K matrix products, exact
//! enumeration of toy distributions, and χ² tests of the sampling routines.

mod arguments;
mod brute;
mod categorical;
mod continuous;
mod discrete;
mod flow;
mod posterior;
mod process;
mod remasking;
mod schedule;
mod toy;
