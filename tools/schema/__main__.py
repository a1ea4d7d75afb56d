from tools.schema import main

main()
