# shellcheck shell=bash
# The one file here that a site edits. Every job reads it first, in the checkout's folder.

# 1. Modules: the site's MPI, where hetmp was set up with it (make setup MPI=system), and CUDA.
# module purge
# module load openmpi/5.0 cuda/12.4

# 2. Where hetmp is: .venv, which make setup makes, or a conda environment.
if [ -d .venv ]; then
    PATH=$PWD/.venv/bin:$PATH
fi
# source /opt/conda/etc/profile.d/conda.sh && conda activate hetmp

# 3. What srun --mpi= is given, if not what fits the MPI library among what this Slurm offers.
# export HETMP_SRUN_MPI=pmix

# 4. The network between the nodes, where MPI picks the wrong one (ip -brief address lists them).
# export FI_TCP_IFACE=ib0               # MPICH
# export OMPI_MCA_btl_tcp_if_include=ib0  # Open MPI

# 5. MPICH with UCX, and a log that says "mpi/pmi2: invalid client request": its addresses are too
# long for this Slurm's pmi2, those of libfabric are not.
# export MPIR_CVAR_CH4_NETMOD=ofi
