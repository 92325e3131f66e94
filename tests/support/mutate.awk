# awk -v entry=N -f mutate.awk tests/mutants.txt HEADER: prints HEADER with the Nth entry's breakage.
# Lines are compared without their indentation, so that a change of layout spares the list. Exit
# status 1: the lines to be replaced are not there; 2: they are there more than once.
function bare(line)
{
    gsub(/^[ \t]+|[ \t]+$/, "", line)
    return line
}

FNR == NR {
    if (/^= /)
        current++
    else if (current == entry && /^-/)
        old[++olds] = bare(substr($0, 2))
    else if (current == entry && /^\+/)
        new[++news] = substr($0, 2)
    next
}

{
    text[++lines] = $0
}

END {
    for (i = 1; i + olds - 1 <= lines; i++) {
        for (k = 1; k <= olds && bare(text[i + k - 1]) == old[k]; k++)
            continue
        if (k > olds) {
            place = i
            places++
        }
    }
    if (places != 1)
        exit places == 0 ? 1 : 2
    for (i = 1; i <= lines; i++) {
        if (i == place)
            for (k = 1; k <= news; k++)
                print new[k]
        if (i < place || i >= place + olds)
            print text[i]
    }
}
