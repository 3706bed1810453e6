/*
 * mpitest all | abort RANK | wait: what sfmpirun is tested with, with MPICH and with Open MPI.
 *
 * all prints what a test can check; a wrong value gives status 1.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, size;

/* A number goes round, each rank adds its own. */
static int ring(void)
{
	long sum = 0;
	if (rank == 0) {
		MPI_Send(&sum, 1, MPI_LONG, 1 % size, 0, MPI_COMM_WORLD);
		MPI_Recv(&sum, 1, MPI_LONG, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		printf("ring of %d: %ld\n", size, sum);
		return sum != (long)size * (size - 1) / 2;
	}
	MPI_Recv(&sum, 1, MPI_LONG, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	sum += rank;
	MPI_Send(&sum, 1, MPI_LONG, (rank + 1) % size, 0, MPI_COMM_WORLD);
	return 0;
}

/* An array that is larger than what is sent eagerly; every rank checks every element. */
static int all_reduce(void)
{
	enum { COUNT = 50000 };
	static double mine[COUNT], sum[COUNT];
	char name[MPI_MAX_PROCESSOR_NAME];
	int length, wrong = 0;
	for (int i = 0; i < COUNT; i++)
		mine[i] = (double)i * (rank + 1);
	MPI_Allreduce(mine, sum, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	for (int i = 0; i < COUNT; i++)
		wrong += sum[i] != (double)i * size * (size + 1) / 2;
	MPI_Get_processor_name(name, &length);
	printf("rank %d of %d on %s: %d wrong\n", rank, size, name, wrong);
	return wrong != 0;
}

/* Rank 0 reads numbers and gives each to all. The last prints what they make of them; the status is rank 0's own sum. */
static int echo(void)
{
	long value = 0, sum = 0, all = 0;
	for (;;) {
		char line[64];
		int more = rank == 0 && fgets(line, sizeof line, stdin) != NULL;
		MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
		if (!more)
			break;
		if (rank == 0)
			value = atol(line);
		MPI_Bcast(&value, 1, MPI_LONG, 0, MPI_COMM_WORLD);
		sum += value;
	}
	MPI_Reduce(&sum, &all, 1, MPI_LONG, MPI_SUM, size - 1, MPI_COMM_WORLD);
	if (rank == size - 1)
		fprintf(stderr, "all read: %ld\n", all);
	return rank == 0 ? (int)sum : 0;
}

static int all(void)
{
	int wrong = ring() + all_reduce(); /* whoever is wrong goes on, or the others would wait for it */
	int status = echo();
	return wrong ? 1 : status;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int status = 2;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (strcmp(what, "all") == 0)
		status = all();
	else if (strcmp(what, "abort") == 0 && argc > 2 && rank == atoi(argv[2]))
		MPI_Abort(MPI_COMM_WORLD, 3);
	else if (strcmp(what, "wait") == 0 || strcmp(what, "abort") == 0) {
		printf("rank %d waits\n", rank);
		fflush(stdout);
		sleep(600);
	}
	MPI_Finalize();
	return status;
}
