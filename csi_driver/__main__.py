"""`python -m csi_driver` is the `hostvol` command; nothing else is decided here."""

from csi_driver.app import main

if __name__ == "__main__":
    main()
